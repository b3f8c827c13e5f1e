"""Paths, named arrays in a file, folders for one process at a time, and errors of full disks that name their file."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "Damaged",
    "atomically",
    "given_path",
    "load_arrays",
    "locked",
    "naming",
    "remove_dead",
    "save_arrays",
    "sweep",
    "unfinished",
]

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems answer that know no locks, such as some network file systems of clusters."""


class Damaged(ValueError):
    """A file that does not hold what was written to it."""


def given_path(name: str, value: Any) -> Path:
    """A path as it was given by a user, of whose start `~` is the home folder, as in a shell.

    Args:
        name: What messages call it.
        value: Text, or a path.

    Raises:
        TypeError: It is neither.

    Example:
        >>> given_path("store", "~/kernels") == Path.home() / "kernels"
        True
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} got {value!r}, expected a path: pass a string or a pathlib.Path.")
    return Path(os.path.expanduser(value))  # a name with ~ that is no user's stays


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder until the block ends or this process dies, in whatever way.

    The operating system holds the lock (`flock` on the file `folder/.lock`, which holds the number
    of the process), so that a killed process leaves nothing to clean up. Where the system or the
    file system knows no such locks, nothing is locked.

    Args:
        folder: A folder that exists.
        wait: Whether to wait for another process instead of raising.

    Raises:
        BlockingIOError: Another process is in the folder; it is named by its number.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(folder):
        ...     os.listdir(folder)
        ['.lock']
    """
    path = Path(folder, ".lock")
    with _acquired(path, wait) as file:
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
        finally:
            # While it is still locked: who waits for it finds its file gone, and opens a new one.
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A new folder beside another one, to be renamed to it once it is complete; removed if it was not.

    Its name cannot collide with that of another thread or process, on this or another host, and the
    operating system holds its lock (`flock`) as long as this process lives, which tells it from
    what a killed process left.

    Args:
        folder: What the new folder will be renamed to, in a folder that exists.

    Raises:
        OSError: It cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place, unfinished(Path(place, "store")) as made:
        ...     _ = made.rename(Path(place, "store"))
        ...     os.listdir(place)
        ['store']
    """
    made = _beside(folder)
    made.mkdir()
    try:
        with _folder_lock(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_dead(folder: Path) -> None:
    """Removes what killed processes left of `unfinished(folder)`, as far as this process may.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     Path(place, "store.1.0.tmp").mkdir()  # the name that version 0.1.0 gave
        ...     remove_dead(Path(place, "store"))
        ...     os.listdir(place)
        []
    """
    left = re.compile(re.escape(folder.name) + r"\.(\d+\.\d+|[0-9a-f]{32})\.tmp")
    with contextlib.suppress(OSError):
        for path in [path for path in folder.parent.iterdir() if left.fullmatch(path.name)]:
            with contextlib.suppress(OSError), _folder_lock(path) as held:
                if held and path.is_dir() and not path.is_symlink():
                    # Renamed first: should it live, where hosts do not see each other's locks, its
                    # owner finds nothing and starts again, and never publishes half of it.
                    shutil.rmtree(path.rename(_beside(folder)), ignore_errors=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives errors of the operating system that name no file, such as that of a full disk, the name of this one.

    Args:
        path: What is written in the block.

    Raises:
        OSError: Of the same kind, with `path` as its file name.

    Example:
        >>> with naming("kernel.npy"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        OSError: [Errno 28] No space left on device: 'kernel.npy'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file under another name and renames it, so that `path` holds all of it or what it held before.

    The other name is random, since numbers of processes are not unique: in containers each is 1.

    Args:
        path: The file, in a folder that exists.
        write: Writes the content to an open file.

    Raises:
        OSError: With `path` as its file name, for instance on a full disk.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "note.txt")
        >>> atomically(path, lambda file: file.write(b"all of it"))
        >>> path.read_bytes()
        b'all of it'
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}.unfinished")
    try:
        with naming(path), open(unfinished, "xb") as file:
            write(file)
            file.flush()
            # The content before the name: after a crash a renamed file could be empty otherwise.
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Writes an `.npz` of named arrays, all or nothing.

    Args:
        path: The file, in a folder that exists.
        arrays: Arrays, or what NumPy makes one of, by name.

    Raises:
        OSError: With `path` as its file name, for instance on a full disk.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "sizes.npz")
        >>> save_arrays(path, {"n": [1, 2]})
        >>> load_arrays(path)["n"].tolist()
        [1, 2]
    """
    converted: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    atomically(path, lambda file: np.savez(file, **converted))


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote, each array to its end, where its checksum is.

    Args:
        path: The file.

    Raises:
        Damaged: If the file is not complete, or one of its checksums is wrong.
        FileNotFoundError: If there is none.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "sizes.npz")
        >>> save_arrays(path, {"n": [1, 2]})
        >>> _ = path.write_bytes(path.read_bytes()[:-1])
        >>> load_arrays(path)
        Traceback (most recent call last):
        ...
        lazynet.files.Damaged: ...sizes.npz is damaged (File is not a zip file): delete it.
    """
    raw = Path(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as stored:
            _check_count(stored, raw)
            members = stored.namelist()
            return {name.removesuffix(".npy"): _array(stored.read(name)) for name in members}
    # A flipped bit may ask for passwords, for unknown compressions, for anything.
    except Exception as error:
        raise Damaged(f"{path} is damaged ({error}): delete it.") from error


def _check_count(stored: zipfile.ZipFile, raw: bytes) -> None:
    """Compares the members found with their number at the end of the file: a wrong length hides those that follow."""
    # The zip format ends in a record of 22 bytes, with the number of members at 10 and 11.
    announced = int.from_bytes(raw[-12:-10], "little")
    if len(stored.namelist()) != announced:
        raise zipfile.BadZipFile(f"{len(stored.namelist())} of {announced} arrays found")


def _array(raw: bytes) -> np.ndarray:
    # A pickle in a file could run code.
    return np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Removes the files that killed processes were writing in a folder and below, for who holds its lock.

    Args:
        folder: A folder that no other process writes to.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".figure.png.1.unfinished").touch()
        >>> sweep(folder)
        >>> list(folder.iterdir())
        []
    """
    for pattern in (".*.unfinished", "*.partial"):
        for unfinished in Path(folder).rglob(pattern):
            unfinished.unlink(missing_ok=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{secrets.token_hex(16)}.tmp")


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[bool]:
    """Whether this block has the lock of a folder: not if another one has it, nor where there are no locks."""
    if fcntl is None:
        yield False
        return
    # The folder itself is locked: no lock file stays in what will be published.
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        # Not if the folder was renamed, or made again, between opening and locking.
        yield held and os.path.samestat(os.fstat(number), folder.stat())
    finally:
        os.close(number)


@contextlib.contextmanager
def _acquired(path: Path, wait: bool) -> Iterator[IO[str]]:
    """The open lock file, once it is locked and still the one that the path names: its last owner removes it."""
    while True:
        # Without truncation: until it is locked, it holds the number of the owner.
        with open(path, "a+") as file:
            _flock(file, path, wait)
            if _same(file, path):
                yield file
                return


def _flock(file: IO[str], path: Path, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.seek(0)
        raise BlockingIOError(
            errno.EWOULDBLOCK, f"locked by process {file.read() or '?'}", str(path)
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def _same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
