"""CIFAR-10 from either of its two published layouts."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from lazynet import guards
from lazynet.datasets.download import Archive, Progress, fetch, unpack
from lazynet.datasets.labels import check_labels, one_hot
from lazynet.datasets.sampling import balanced_indices
from lazynet.files import given_path, locked
from lazynet.records import Data

__all__ = ["CIFAR10_ARCHIVE", "cifar10", "data_root"]

CIFAR10_ARCHIVE = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
"""The binary version of CIFAR-10 on its authors' page, https://www.cs.toronto.edu/~kriz/cifar.html."""

VARIABLE = "LAZYNET_DATA"
BINARY = "cifar-10-batches-bin"
PICKLED = "cifar-10-batches-py"
CLASSES = 10
SIDE = 32
CHANNELS = 3
PIXELS = CHANNELS * SIDE * SIDE
RECORD = 1 + PIXELS
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = ("test_batch",)
AGAIN = "delete the folder and download it again"

Batch = tuple[UInt8[np.ndarray, "n 3072"], np.ndarray]


def cifar10(
    root: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    archive: Archive = CIFAR10_ARCHIVE,
    records_per_file: int = 10_000,
) -> tuple[Data, Data]:
    """CIFAR-10: x `[n, 32, 32, 3]` float32 is the photograph divided by 255, y `[n, 10]` float32 one-hot.

    Reads `cifar-10-batches-bin/` or, where that is missing, `cifar-10-batches-py/` below `root`.
    Pickled batches are read without running any code they name.

    Args:
        root: Folder that holds one of the two folders, or one of these itself; the environment
            variable LAZYNET_DATA if None.
        download: Fetch the official archive (170 MB) into `root` where neither folder is there. A
            broken download continues with the next call.
        n_train: Size of a class-balanced subset, everything if None.
        n_test: The same for the test set.
        seed: Of the two draws.
        progress: Called with the bytes downloaded so far and in total; None shows a progress bar.
        archive: What to download.
        records_per_file: Images in each of the six files.

    Raises:
        FileNotFoundError: Nothing to read.
        TypeError: A number of examples is no integer.
        ConnectionError: The download failed or broke off.
        ValueError: A file is truncated, damaged or asks for code, a label is out of range, the
            download has a wrong checksum, or a subset is larger than its classes.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     folder = Path(root, "cifar-10-batches-bin")
        ...     folder.mkdir()
        ...     for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        ...         _ = (folder / f"{name}.bin").write_bytes(bytes([7]) + bytes(3072))
        ...     train, test = cifar10(root, records_per_file=1)
        >>> train.x.shape, int(test.y.argmax())
        ((5, 32, 32, 3), 7)
    """
    records_per_file = guards.count("records_per_file", records_per_file)
    for name, size in (("n_train", n_train), ("n_test", n_test)):
        if size is not None:
            guards.count(name, size, fix="None takes all")
    folder = data_root(root)
    if download and _find(folder) is None:
        _download(archive, folder, progress)
    found = _find(folder)
    if found is None:
        raise FileNotFoundError(
            f"no CIFAR-10 in {folder}: expected {BINARY}/ or {PICKLED}/ there; correct root, or pass download=True"
        )
    read, path = found
    train = _select(_concatenate(read, path, TRAIN, records_per_file), n_train, seed)
    return train, _select(_concatenate(read, path, TEST, records_per_file), n_test, seed)


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The data folder: `root` where given, otherwise the environment variable LAZYNET_DATA.

    Raises:
        ValueError: Neither is given.

    Example:
        >>> data_root("photographs").name
        'photographs'
    """
    chosen = os.environ.get(VARIABLE) if root is None else root
    if not chosen:
        raise ValueError(
            f"no data folder: pass root=FOLDER or set {VARIABLE}=FOLDER, and download=True if it is still empty"
        )
    return given_path("root", chosen)


def _download(archive: Archive, folder: Path, progress: Progress | None) -> None:
    """Fetches and unpacks; of several processes one does, for which the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):
        # Another process may have finished it while this one waited for the lock.
        if _find(folder) is None:
            unpack(fetch(archive, folder, progress), folder, BINARY)


def _find(folder: Path) -> tuple[Callable[[Path, int], Batch], Path] | None:
    """Reader and folder of the layout that is there, the binary one first."""
    for reader, name, first in (
        (_read_binary, BINARY, "data_batch_1.bin"),
        (_read_pickled, PICKLED, "data_batch_1"),
    ):
        if (folder / name).is_dir():
            return reader, folder / name
        if (folder / first).is_file():
            return reader, folder
    return None


def _concatenate(
    read: Callable[[Path, int], Batch], folder: Path, names: tuple[str, ...], records: int
) -> Batch:
    batches = [read(folder / name, records) for name in names]
    return np.concatenate([pixels for pixels, _ in batches]), np.concatenate(
        [labels for _, labels in batches]
    )


def _select(batch: Batch, n: int | None, seed: int) -> Data:
    pixels, labels = batch
    if n is not None:
        kept = balanced_indices(labels, CLASSES, n, seed=seed)
        pixels = pixels[kept]
        labels = labels[kept]
    return Data(_images(pixels), one_hot(labels, CLASSES, np.float32))


def _images(pixels: UInt8[np.ndarray, "n 3072"]) -> Float[np.ndarray, "n 32 32 3"]:
    """Rows of three color planes as channels-last images in [0, 1]."""
    planes = pixels.reshape(-1, CHANNELS, SIDE, SIDE)
    # One copy in all: transposed and converted together, then divided in place.
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1), dtype=np.float32)
    images /= 255
    return images


def _read_binary(path: Path, records: int) -> Batch:
    path = path.with_name(f"{path.name}.bin")
    # Records of one byte for the label and three planes of 32 x 32 bytes.
    raw = np.frombuffer(_bytes(path), np.uint8)
    if raw.size != records * RECORD:
        raise ValueError(
            f"{path} has {raw.size} bytes, expected {records} records of {RECORD} = {records * RECORD}: it is "
            f"{'truncated' if raw.size < records * RECORD else 'too long'}; {AGAIN}"
        )
    table = raw.reshape(records, RECORD)
    return table[:, 1:], _labels(table[:, 0], path)


def _read_pickled(path: Path, records: int) -> Batch:
    content = _load(path)
    try:
        pixels = _array(content[b"data"])
        labels = np.asarray(content[b"labels"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        expected = "expected a dict with b'data' (uint8 array) and b'labels' (list)"
        raise ValueError(f"{path} is no CIFAR-10 batch ({error!r}): {expected}") from error
    if pixels.shape != (records, PIXELS) or len(labels) != records:
        raise ValueError(
            f"{path} has data of shape {pixels.shape} and {len(labels)} labels, expected ({records}, {PIXELS}) and "
            f"{records}: {AGAIN}"
        )
    return pixels, _labels(labels, path)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {AGAIN}") from None


def _labels(labels: np.ndarray, path: Path) -> np.ndarray:
    try:
        return check_labels(labels, CLASSES).astype(np.int64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _load(path: Path) -> Any:
    raw = _bytes(path)
    try:
        # Written by Python 2, whose text stays bytes: keys are b"data" and b"labels".
        return _InertUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except _Forbidden as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): {AGAIN}") from error


class _Stored:
    """An object of a pickle, kept as it was written: arguments and state, nothing computed from them."""

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _array(stored: _Stored) -> np.ndarray:
    """The array that NumPy would build: its state is (version, shape, dtype, Fortran order, bytes)."""
    _, shape, dtype, fortran, raw = stored.state
    # Text, or bytes where Python 2 wrote the file.
    if dtype.args[0] not in ("u1", b"u1"):
        raise TypeError(f"array of dtype {dtype.args[0]}")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, which old pickle protocols write as a call of `codecs.encode(text, "latin1")`."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}, expected 'latin1'")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Stored,
    ("numpy._core.multiarray", "_reconstruct"): _Stored,
    ("numpy", "ndarray"): _Stored,
    ("numpy", "dtype"): _Stored,
    ("_codecs", "encode"): _encode,
}


class _Forbidden(Exception):
    """A pickle names something other than what plain arrays are made of."""


class _InertUnpickler(pickle.Unpickler):
    """Reads dicts, lists, bytes, numbers and the ingredients of arrays, and imports nothing."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in ALLOWED:
            raise _Forbidden(
                f"asks for {module_name}.{global_name}, which no CIFAR-10 file needs and which could run code: it was "
                "not loaded; delete the file and download it again"
            )
        return ALLOWED[module_name, global_name]
