"""Fetching a published archive: resumed, checked before use, unpacked safely and all or nothing."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lazynet.files import naming

__all__ = ["Archive", "fetch", "unpack"]

Progress = Callable[[int, int], Any]

CHUNK = 2**16
ATTEMPTS = 3
TIMEOUT = 30.0
RANGE_NOT_SATISFIABLE = 416
MAX_UNPACKED = 2**29
"""Bytes; the archive of CIFAR-10 unpacks to 1.8e8, a small file made for the purpose to anything."""
MAX_MEMBERS = 1000


class Archive(NamedTuple):
    """A published file and what is known of it before it is opened.

    Attributes:
        url: Where it is.
        size: Number of bytes.
        md5: Hexadecimal MD5 digest, as its authors publish it.

    Example:
        >>> Archive("https://example.org/images.tar.gz", 170_052_171, "c32a1d4a").size
        170052171
    """

    url: str
    size: int
    md5: str


def fetch(archive: Archive, folder: Path, progress: Progress | None = None) -> Path:
    """The archive in `folder` under a name ending in `.part`, its size and MD5 equal to the published ones.

    What a broken download left is continued, or started anew where the server cannot continue.

    Raises:
        ConnectionError: The server cannot be reached or keeps breaking off; what has arrived is
            kept.
        ValueError: What arrived has another size or MD5; it is deleted.
    """
    part = folder / (PurePosixPath(archive.url).name + ".part")
    with _bar(archive) if progress is None else contextlib.nullcontext(progress) as report:
        # Each attempt goes on where the one before broke off.
        for _ in range(ATTEMPTS):
            if _size(part) < archive.size:
                with naming(part):
                    _receive(archive, part, report)
    if _size(part) < archive.size:
        raise ConnectionError(
            f"{archive.url} broke off after {_size(part)} of {archive.size} bytes, kept in {part}: "
            "call again to continue"
        )
    _verify(archive, part)
    return part


def unpack(archive_file: Path, folder: Path, name: str) -> None:
    """Moves the archive's folder `name` to `folder/name`, complete or not at all, and deletes the archive.

    What is unpacked first stands in `folder/.name.partial`; a killed call leaves it there, and the
    next one removes it.

    Raises:
        ValueError: A member is anything but a plain file or folder below `name`, the archive
            unpacks to more than `MAX_UNPACKED` bytes or `MAX_MEMBERS` members, or it is damaged.
        OSError: The disk is full or cannot be written; the archive is kept.
    """
    temporary = folder / f".{name}.partial"
    _remove(temporary)
    try:
        with naming(folder / name), gzip.open(archive_file) as stream:
            # Sizes that members announce may be wrong: what comes out of gzip is counted, too.
            bounded: Any = _Bounded(stream)
            # "r|" never seeks: every byte of the archive goes through the bound.
            with tarfile.open(fileobj=bounded, mode="r|") as tar:
                # Python 3.11 has filters from 3.11.4 on; before, `_checked` stands alone.
                tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
                tar.extractall(temporary, members=_checked(tar, name))
        os.replace(temporary / name, folder / name)
    # FileNotFoundError: the archive was read, but has no folder of this name to be moved.
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, FileNotFoundError) as error:
        archive_file.unlink()
        raise ValueError(
            f"no archive of {name}/ ({error}): it was deleted, check its address and MD5"
        ) from error
    finally:
        _remove(temporary)
    archive_file.unlink()


class _Bounded:
    """A stream that ends in an error after `MAX_UNPACKED` bytes, whatever an archive announces about its members."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.left = MAX_UNPACKED

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {MAX_UNPACKED} bytes")
        return chunk


def _remove(temporary: Path) -> None:
    if temporary.exists():
        shutil.rmtree(temporary)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(archive: Archive, part: Path, report: Progress) -> None:
    """Appends to `part` what one connection yields; returns where it breaks off."""
    start = _size(part)
    request = urllib.request.Request(
        archive.url, headers={"Range": f"bytes={start}-"} if start else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            begin = _begin(response, archive)
            # Bytes between the two would be missing.
            if begin > start:
                raise http.client.HTTPException(
                    f"the server continues at byte {begin}, {start} are here"
                )
            _write(response, part, begin, archive, report)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise ConnectionError(_unreachable(archive, error)) from error
        # The server's file ends before what is here: the next attempt starts anew.
        part.unlink()
    except urllib.error.URLError as error:
        raise ConnectionError(_unreachable(archive, error.reason)) from error
    except (ConnectionError, TimeoutError, http.client.HTTPException):
        return


def _begin(response: Any, archive: Archive) -> int:
    """First byte that the server sends, once the size it announces is known to be the published one."""
    content_range = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "")
    )
    begin, total = (
        content_range.groups() if content_range else (0, response.headers.get("Content-Length"))
    )
    if total is not None and int(total) != archive.size:
        raise ValueError(
            f"{archive.url} has {total} bytes, expected {archive.size}: it is not the published file, get it elsewhere"
        )
    return int(begin)


def _write(response: Any, part: Path, begin: int, archive: Archive, report: Progress) -> None:
    """Writes from byte `begin` on, at most one chunk beyond the published size."""
    with open(part, "ab") as file:
        # A server that does not continue sends everything from byte 0.
        file.truncate(begin)
        done = begin
        # One chunk more than announced shows that the file is too long; an endless one is not read.
        while done <= archive.size:
            report(done, archive.size)
            chunk = response.read(CHUNK)
            if not chunk:
                return
            file.write(chunk)
            done += len(chunk)


def _verify(archive: Archive, part: Path) -> None:
    size = _size(part)
    with open(part, "rb") as file:
        # MD5 is what the authors publish; systems that forbid it allow it outside of security.
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if (size, md5) != (archive.size, archive.md5):
        part.unlink()
        raise ValueError(
            f"{archive.url} gave {size} bytes with MD5 {md5}, expected {archive.size} bytes with MD5 {archive.md5}: "
            "the file was deleted, download it again or get it from another place"
        )


def _checked(tar: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    left = MAX_UNPACKED
    for count, member in enumerate(tar):
        left -= member.size
        if left < 0 or count >= MAX_MEMBERS:
            raise tarfile.ExtractError(
                f"it unpacks to more than {MAX_UNPACKED} bytes or {MAX_MEMBERS} members"
            )
        path = PurePosixPath(member.name)
        plain = member.isreg() or member.isdir()
        if not plain or path.parts[:1] != (name,) or ".." in path.parts:
            kind = "path" if plain else "link or device"
            raise tarfile.ExtractError(
                f"it holds the {kind} {member.name!r}, expected plain files below {name}/"
            )
        yield member


def _unreachable(archive: Archive, reason: Any) -> str:
    return (
        f"{archive.url} cannot be downloaded ({reason}): check the network, or get the file by other means and "
        "unpack it into the data folder"
    )


@contextlib.contextmanager
def _bar(archive: Archive) -> Iterator[Progress]:
    """A progress bar on standard error."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
    )
    extras = (progress.TransferSpeedColumn(), progress.TimeRemainingColumn())
    with progress.Progress(*columns, *extras, console=Console(stderr=True)) as bar:
        task = bar.add_task(PurePosixPath(archive.url).name, total=archive.size)
        yield lambda done, total: bar.update(task, completed=done, total=total)
