"""CIFAR-10 from small made archives in the published layouts, read, refused and downloaded over loopback."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from served import serve

from lazynet.datasets import CIFAR10_ARCHIVE, Archive, cifar10, data_root
from lazynet.datasets.download import fetch

RECORDS = 20
GOOD = np.zeros((RECORDS, 3072), np.uint8)
NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random pixels, every class twice in each file."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(10), RECORDS // 10).astype(np.uint8)
    return {
        name: (rng.integers(0, 256, (RECORDS, 3072), dtype=np.uint8), rng.permutation(labels))
        for name in NAMES
    }


def write_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches().items():
        np.concatenate([labels[:, None], pixels], axis=1).tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("airplane\n")
    return folder


def write_pickled(root: Path, protocol: int = 2, order: str = "C") -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches().items():
        content = {
            b"batch_label": name.encode(),
            b"labels": labels.tolist(),
            b"data": np.asarray(pixels, order=order),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


def read(root: Path | None, **options):
    return cifar10(root, records_per_file=RECORDS, **options)


# --- reading


def test_an_image_is_channels_last_from_three_planes_in_row_order(tmp_path):
    write_binary(tmp_path)
    train, test = read(tmp_path)
    pixels, labels = batches()["data_batch_2"]
    for channel, row, column in [(0, 0, 0), (2, 31, 31), (1, 3, 17)]:
        plane_position = 1024 * channel + 32 * row + column
        expected = pixels[4, plane_position].astype(np.float32) / np.float32(255)
        assert train.x[RECORDS + 4, row, column, channel] == expected
    assert train.y[RECORDS + 4].argmax() == labels[4]
    assert train.x.shape == (5 * RECORDS, 32, 32, 3) and test.x.shape == (RECORDS, 32, 32, 3)


def test_images_and_targets_are_float32_and_one_hot(tmp_path):
    write_binary(tmp_path)
    train, test = read(tmp_path)
    assert {array.dtype for array in (*train, *test)} == {np.dtype(np.float32)}
    assert 0 <= train.x.min() and train.x.max() <= 1
    assert np.array_equal(test.y.sum(axis=0), np.full(10, 2))


@pytest.mark.parametrize(("protocol", "order"), [(2, "C"), (2, "F"), (0, "C"), (4, "C")])
def test_both_layouts_give_the_same_arrays(tmp_path, protocol, order):
    write_binary(tmp_path / "binary")
    write_pickled(tmp_path / "pickled", protocol, order)
    for one, other in zip(read(tmp_path / "binary"), read(tmp_path / "pickled"), strict=True):
        assert np.array_equal(one.x, other.x) and np.array_equal(one.y, other.y)


def test_files_pickled_by_python_2_are_read(tmp_path):
    folder = write_pickled(tmp_path)
    pixels, labels = batches()["test_batch"]
    # Python 2 writes its strings, the array's bytes among them, with the opcodes for byte strings
    # (U, T).
    short = b"".join(b"K" + bytes([label]) for label in labels)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = b"T" + pixels.nbytes.to_bytes(4, "little") + pixels.tobytes()
    shape = b"K" + bytes([RECORDS]) + b"M" + (3072).to_bytes(2, "little") + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + dtype
        + b"\x89"
        + raw
        + b"tb"
    )
    (folder / "test_batch").write_bytes(
        b"\x80\x02}(U\x06labels](" + short + b"eU\x04data" + array + b"u."
    )
    _, test = read(tmp_path)
    assert np.array_equal(
        (test.x * 255).round().astype(np.uint8).transpose(0, 3, 1, 2).reshape(RECORDS, -1), pixels
    )


@pytest.mark.parametrize("write", [write_binary, write_pickled])
def test_the_batches_folder_itself_may_be_given(tmp_path, write):
    folder = write(tmp_path)
    assert np.array_equal(read(folder)[0].x, read(tmp_path)[0].x)


def test_the_binary_layout_is_preferred(tmp_path):
    write_binary(tmp_path)
    (write_pickled(tmp_path) / "data_batch_1").write_bytes(b"not read")
    assert read(tmp_path)[0].x.shape == (5 * RECORDS, 32, 32, 3)


def test_subsets_are_balanced_and_repeatable(tmp_path):
    write_binary(tmp_path)
    train, test = read(tmp_path, n_train=35, n_test=10, seed=4)
    assert np.ptp(train.y.sum(axis=0)) == 1 and np.ptp(test.y.sum(axis=0)) == 0
    assert np.array_equal(read(tmp_path, n_train=35, seed=4)[0].x, train.x)
    assert not np.array_equal(read(tmp_path, n_train=35, seed=5)[0].x, train.x)


def test_the_environment_names_the_data_folder(tmp_path, monkeypatch):
    write_binary(tmp_path)
    monkeypatch.setenv("LAZYNET_DATA", str(tmp_path))
    assert read(None)[1].x.shape == (RECORDS, 32, 32, 3)


def test_an_explicit_folder_comes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LAZYNET_DATA", "elsewhere")
    assert data_root(tmp_path) == tmp_path and data_root("~") == Path.home()


# --- refusing


class _Call:
    """What a malicious pickle holds: an object that is rebuilt by calling a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _overwrite(folder: Path, content) -> None:
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    (folder / "data_batch_3").write_bytes(data)


def _label(folder: Path, value: int) -> None:
    with open(folder / "data_batch_1.bin", "r+b") as file:
        file.seek(3 * 3073)
        file.write(bytes([value]))


def _cut(path: Path, n: int) -> None:
    path.write_bytes(path.read_bytes()[:n])


def _batch(data=GOOD, labels=(0,) * RECORDS):
    """Damage that replaces a pickled file by another dict."""
    return lambda folder: _overwrite(folder, {b"data": data, b"labels": list(labels)})


BAD_BINARY = {
    "cut inside a record": (
        lambda f: _cut(f / "test_batch.bin", 5000),
        r"has 5000 bytes, expected 20 .* = 61460: .*trunc",
    ),
    "a record missing": (
        lambda f: _cut(f / "test_batch.bin", 19 * 3073),
        r"test_batch.bin has 58387 bytes.*truncated",
    ),
    "a record too many": (
        lambda f: (f / "test_batch.bin").write_bytes(bytes(21 * 3073)),
        r"64533 bytes.*too long",
    ),
    "label 10": (
        lambda f: _label(f, 10),
        r"data_batch_1.bin: 1 of 20 labels .* labels\[3\] = 10.*0 to 9",
    ),
}
BAD_PICKLED = {
    "label -1": (_batch(labels=[-1] * 20), "data_batch_3: 20 of 20 labels are out of range"),
    "fractional labels": (_batch(labels=[0.5] * 20), "data_batch_3: labels have dtype float64"),
    "float pixels": (_batch(GOOD / 1.0), "array of dtype .*f8"),
    "array of objects": (_batch(np.zeros(3, "O")), "no CIFAR-10 batch"),
    "array of records": (_batch(np.zeros(3, "u1,u1")), "no CIFAR-10 batch"),
    "few rows": (
        _batch(GOOD[:3], [0] * 3),
        r"shape \(3, 3072\) and 3 labels, expected \(20, 3072\)",
    ),
    "no dict": (lambda f: _overwrite(f, [1, 2]), "data_batch_3 is no CIFAR-10 batch"),
    "no data": (
        lambda f: _overwrite(f, {b"labels": [0] * 20}),
        r"KeyError\(b'data'\).*expected a dict with",
    ),
    "cut pickle": (
        lambda f: _cut(f / "data_batch_3", 4000),
        "data_batch_3 is truncated or damaged",
    ),
    "empty pickle": (lambda f: _overwrite(f, b""), "data_batch_3 is truncated or damaged"),
    "system call": (
        lambda f: _overwrite(f, _Call(exec, "exit()")),
        r"data_batch_3 asks for __builtin__\.exec.*run code",
    ),
    "call for an array": (_batch(_Call(eval, "1")), r"asks for __builtin__\.eval"),
    "other class": (lambda f: _overwrite(f, Path("x")), r"asks for pathlib\."),
    "other codec": (
        lambda f: _overwrite(f, pickle.dumps(b"\xff", 2).replace(b"latin1", b"rot_13")),
        "encoding 'rot_13'",
    ),
}
BAD_FILES = {f"binary, {name}": (write_binary, *rest) for name, rest in BAD_BINARY.items()}
BAD_FILES |= {f"pickled, {name}": (write_pickled, *rest) for name, rest in BAD_PICKLED.items()}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_damaged_or_malicious_file_is_refused_by_name(tmp_path, case):
    write, damage, message = BAD_FILES[case]
    damage(write(tmp_path))
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_a_subset_larger_than_its_classes_names_the_largest_possible(tmp_path):
    write_binary(tmp_path)
    with pytest.raises(ValueError, match="n = 101 balanced examples.*ask for at most 100"):
        read(tmp_path, n_train=101)


def test_an_empty_folder_names_both_layouts_and_the_download(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="cifar-10-batches-bin/ or cifar-10-batches-py/.*download=True"
    ):
        read(tmp_path / "missing")


@pytest.mark.parametrize(
    ("write", "name"), [(write_binary, "data_batch_4.bin"), (write_pickled, "data_batch_4")]
)
def test_a_missing_file_is_named(tmp_path, write, name):
    (write(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        read(tmp_path)


def test_without_any_folder_the_argument_the_variable_and_the_download_are_named(monkeypatch):
    monkeypatch.delenv("LAZYNET_DATA", raising=False)
    with pytest.raises(
        ValueError, match="root=FOLDER or set LAZYNET_DATA=FOLDER, and download=True"
    ):
        cifar10()


# --- downloading


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> bytes:
    return pack(write_binary(tmp_path_factory.mktemp("source")))


def pack(*members: Path | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member in members:
            if isinstance(member, Path):
                tar.add(member, member.name)
            else:
                tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def download(root: Path, archive: Archive, **options):
    return read(root, download=True, archive=archive, progress=lambda done, total: None, **options)


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_official_archive_is_the_one_published():
    assert CIFAR10_ARCHIVE.url.endswith("cs.toronto.edu/~kriz/cifar-10-binary.tar.gz")
    assert (CIFAR10_ARCHIVE.size, CIFAR10_ARCHIVE.md5) == (
        170052171,
        "c32a1d4ab5d03f1284b67883e8d87530",
    )


def test_a_download_leaves_the_unpacked_folder_and_nothing_else(tmp_path, official):
    with serve(official) as (_, archive):
        train, _ = download(tmp_path / "new" / "folder", archive)
    assert np.array_equal(train.y[:RECORDS].argmax(axis=1), batches()["data_batch_1"][1])
    assert left(tmp_path / "new" / "folder") == ["cifar-10-batches-bin"]


def test_nothing_is_downloaded_where_the_data_are(tmp_path, official):
    write_pickled(tmp_path)
    with serve(official) as (server, archive):
        download(tmp_path, archive)
    assert server.asked == []


def test_progress_is_reported_up_to_the_size(tmp_path, official):
    seen = []
    with serve(official) as (_, archive):
        read(
            tmp_path,
            download=True,
            archive=archive,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert (
        seen[0] == (0, len(official))
        and seen[-1] == (len(official), len(official))
        and seen == sorted(seen)
    )


def test_a_progress_bar_is_drawn_on_standard_error(tmp_path, official, capsys):
    with serve(official) as (_, archive):
        read(tmp_path, download=True, archive=archive)
    out, err = capsys.readouterr()
    assert out == "" and "cifar-10-binary.tar.gz" in err


def test_a_connection_that_breaks_off_is_continued_where_it_broke(tmp_path, official):
    with serve(official, plan=[(1000, True)]) as (server, archive):
        download(tmp_path, archive)
    assert server.asked == [None, "bytes=1000-"]


def test_what_an_earlier_call_left_is_continued(tmp_path, official):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(official[:777])
    with serve(official) as (server, archive):
        download(tmp_path, archive)
    assert server.asked == ["bytes=777-"]


def test_a_complete_part_is_used_without_asking_the_server(tmp_path, official):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(official)
    with serve(official) as (server, archive):
        download(tmp_path, archive)
    assert server.asked == []


def test_a_server_that_ignores_ranges_makes_the_download_start_anew(tmp_path, official):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(b"x" * 777)
    with serve(official, plan=[(None, False)]) as (server, archive):
        download(tmp_path, archive)
    assert len(server.asked) == 1


def test_a_server_that_keeps_breaking_off_is_an_error_that_keeps_the_part(tmp_path, official):
    with serve(official, plan=[(100, True)] * 3) as (_, archive):
        with pytest.raises(
            ConnectionError,
            match=rf"broke off after 300 of {len(official)} bytes, kept in .*call again",
        ):
            download(tmp_path, archive)
        assert (tmp_path / "cifar-10-binary.tar.gz.part").read_bytes() == official[:300]
        download(tmp_path, archive)


def test_a_wrong_checksum_deletes_the_part_and_says_so(tmp_path, official):
    with serve(official) as (_, archive):
        with pytest.raises(ValueError, match="MD5 .*, expected .* MD5 0000.*deleted"):
            download(tmp_path, archive._replace(md5="0000"))
    assert left(tmp_path) == []


def test_a_damaged_part_is_deleted_and_the_next_call_succeeds(tmp_path, official):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(b"x" * 777)
    with serve(official) as (_, archive):
        with pytest.raises(ValueError, match="deleted"):
            download(tmp_path, archive)
        download(tmp_path, archive)


def test_a_part_longer_than_the_archive_is_deleted(tmp_path, official):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(official + b"x")
    with (
        serve(official) as (_, archive),
        pytest.raises(ValueError, match=f"gave {len(official) + 1} bytes.*deleted"),
    ):
        fetch(archive, tmp_path, lambda done, total: None)
    assert left(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 10], ids=["fresh", "part longer than the server's file"])
def test_a_file_of_another_size_is_refused_before_it_is_downloaded(tmp_path, official, kept):
    size = len(official)
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(bytes(kept and size + kept))
    with (
        serve(official) as (_, archive),
        pytest.raises(ValueError, match=f"has {size} bytes, expected {size + 99}"),
    ):
        download(tmp_path, archive._replace(size=size + 99))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/cifar-10-binary.tar.gz", None])
def test_an_unreachable_server_or_missing_file_is_named_with_the_way_out(tmp_path, official, url):
    with serve(official) as (server, archive):
        server.name = "renamed"
        with pytest.raises(
            ConnectionError, match="cannot be downloaded .*unpack it into the data folder"
        ):
            download(tmp_path, archive._replace(url=url or archive.url))


def _member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


BAD_MEMBERS = {
    "path out of the folder": (
        _member("cifar-10-batches-bin/../../escaped"),
        "path 'cifar-10-batches-bin/../../escaped'",
    ),
    "absolute path": (_member("/escaped"), "path '/escaped'"),
    "beside the folder": (_member("escaped"), "path 'escaped'"),
    "symbolic link": (
        _member("cifar-10-batches-bin/link", tarfile.SYMTYPE, "../.."),
        "link or device",
    ),
    "hard link": (
        _member("cifar-10-batches-bin/link", tarfile.LNKTYPE, "cifar-10-batches-bin/x"),
        "link or device",
    ),
    "device": (_member("cifar-10-batches-bin/null", tarfile.CHRTYPE), "link or device"),
    "pipe": (_member("cifar-10-batches-bin/pipe", tarfile.FIFOTYPE), "link or device"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_an_archive_that_reaches_out_of_its_folder_is_refused_and_leaves_nothing(tmp_path, case):
    member, message = BAD_MEMBERS[case]
    body = pack(write_binary(tmp_path / "source"), member)
    root = tmp_path / "outer" / "root"
    root.mkdir(parents=True)
    with serve(body) as (_, archive), pytest.raises(ValueError, match=message):
        download(root, archive)
    assert left(root) == [] and left(root.parent) == ["root"]


@pytest.mark.parametrize(
    "body",
    [b"no archive", pack(), pack(_member("cifar-10-batches-bin/x", size=9999))[:60]],
    ids=["no archive", "empty", "cut short"],
)
def test_an_archive_that_cannot_be_unpacked_is_named_and_leaves_nothing(tmp_path, body):
    with (
        serve(body) as (_, archive),
        pytest.raises(ValueError, match="no archive of cifar-10-batches-bin/"),
    ):
        download(tmp_path, archive)
    assert left(tmp_path) == []
