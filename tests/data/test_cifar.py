"""CIFAR-10: its batches, in a folder or in the archive, other data in their place, and what is refused."""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import damaged, put, sha256

import data
import evaluate
import experiment
import train
from data.files import Identity
from data.sources import cifar10, parse_batch
from experiment.config import DENSITY_NOTE

NAMES = [file.name for file in cifar10.files]
ARCHIVE = cifar10.files[0].archive
EACH = 20  # images in a batch
IMAGES = np.random.default_rng(0).integers(0, 256, (6 * EACH, 32, 32, 3), np.uint8)
LABELS = np.arange(6 * EACH) % 10
SHARED = Path(os.environ.get("VAMPVAE_DATA", "/nowhere"))

pytestmark = pytest.mark.usefixtures("cache")


def batch(images, labels, /, **changes):
    """The content of a batch as it is published, but for `changes`."""
    rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    value = {"batch_label": "a batch", "labels": labels.tolist(), "data": rows, "filenames": ["a.png"] * len(images)}
    return pickle.dumps(value | changes, 2)


BATCHES = {
    name: batch(IMAGES[EACH * number :][:EACH], LABELS[EACH * number :][:EACH]) for number, name in enumerate(NAMES)
}


def tar(contents):
    """A tar.gz of files, a dict of name to content: the same bytes at any time of day."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def published(monkeypatch, batches=BATCHES, mirror="https://localhost:1/"):
    """Makes these, a dict of name to content, what CIFAR-10 is known by, and returns their archive."""
    packed = tar(batches)
    identity = Identity(len(packed), f"sha256:{sha256(packed)}")
    archive = dataclasses.replace(ARCHIVE, packed=identity, urls=(f"{mirror}{ARCHIVE.name}",))
    md5 = {name: Identity(None, f"md5:{hashlib.md5(content).hexdigest()}") for name, content in batches.items()}
    files = [dataclasses.replace(file, unpacked=md5[file.name], archive=archive) for file in cifar10.files]
    counts = {"train": 4 * EACH + 10, "val": 10, "test": EACH}
    source = dataclasses.replace(cifar10, num_images=counts, files=tuple(files))
    monkeypatch.setitem(data.DATA_SETS, "cifar10", source)
    return packed


def check(dataset):
    """That these are IMAGES and LABELS, split as they are to be."""
    ends = [0, 4 * EACH + 10, 5 * EACH, 6 * EACH]
    for name, start, end in zip(data.SPLITS, ends, ends[1:], strict=False):
        split = dataset.split(name)
        np.testing.assert_array_equal(split.images, IMAGES[start:end])
        np.testing.assert_array_equal(split.labels, LABELS[start:end])
        assert split.images.flags.c_contiguous and split.labels.dtype == np.int64 and split.max_value == 255
    assert dataset.note == "" and dataset.image_shape == (32, 32, 3)


def unpacked(folder, contents=BATCHES):
    """Writes them as they lie behind the archive's unpacking."""
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    put(folder, contents)
    return folder


# ---------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_batches_in_their_folder(tmp_path, monkeypatch, place):
    published(monkeypatch)
    unpacked(tmp_path / place)
    dataset = data.load("cifar10", tmp_path)
    dataset.split("train")
    assert dataset.sha256 == {name: sha256(BATCHES[name]) for name in NAMES[:5]}  # the test batch is not opened
    check(dataset)
    assert set(data.fetch("cifar10", tmp_path).values()) == {"verified"}


def test_batches_that_were_packed_again(tmp_path, monkeypatch):
    published(monkeypatch)
    check(data.load("cifar10", unpacked(tmp_path, {f"{name}.gz": gzip.compress(BATCHES[name]) for name in NAMES})))


@pytest.mark.parametrize("name", [ARCHIVE.name, "cifar-10-python.tar"])
def test_batches_in_the_archive(tmp_path, monkeypatch, name):
    packed = published(monkeypatch)
    put(tmp_path, {name: packed if name.endswith(".gz") else gzip.decompress(packed)})
    check(data.load("cifar10", tmp_path))
    assert data.found("cifar10", tmp_path) == [(one, tmp_path / name) for one in NAMES]
    assert data.fetch("cifar10", tmp_path) == {tmp_path / name: "verified"}


@pytest.mark.parametrize("place", ["Cifar10", "cifar-10-batches-py-target"])
def test_batches_where_other_tools_unpack_them(tmp_path, monkeypatch, place):
    published(monkeypatch)
    unpacked(tmp_path / place)
    check(data.load("cifar10", tmp_path))
    check(data.load("cifar10", tmp_path / place / "cifar-10-batches-py"))  # the folder itself


@pytest.mark.parametrize("name", ["cifar-10-batches-py.tar.gz", "cifar-10-batches-py-target_archive"])
def test_the_archive_as_keras_calls_it(tmp_path, monkeypatch, name):
    (tmp_path / "keras" / "datasets").mkdir(parents=True)
    put(tmp_path / "keras" / "datasets", {name: published(monkeypatch)})
    check(data.load("cifar10"))


def test_the_archive_is_downloaded_once_into_the_cache(monkeypatch, site, cache):
    mirror = site.offer("good", {ARCHIVE.name: published(monkeypatch)})
    published(monkeypatch, mirror=mirror)
    check(data.load("cifar10"))
    assert site.asked == [f"/good/{ARCHIVE.name}"]
    assert [path.name for path in (cache / "cifar10").iterdir()] == [ARCHIVE.name]


def test_another_archive_is_not_taken_from_a_server(monkeypatch, site, cache):
    packed = published(monkeypatch)
    published(monkeypatch, mirror=site.offer("bad", {ARCHIVE.name: damaged(packed)}))
    with pytest.raises(data.DataError, match=r"data_batch_1 was not found and could not be downloaded .*other content"):
        data.load("cifar10").split("val")
    assert list((cache / "cifar10").iterdir()) == []


def test_what_is_missing_in_the_folder_is_taken_from_the_archive(tmp_path, monkeypatch):
    packed = published(monkeypatch)
    unpacked(tmp_path, {name: BATCHES[name] for name in NAMES if not name.endswith("3")})
    put(tmp_path, {ARCHIVE.name: packed})
    check(data.load("cifar10", tmp_path))


def test_other_batches_are_taken_if_they_are_asked_for(tmp_path, monkeypatch, capsys):
    """Fewer batches, with fewer images, of which val has the published share, a tenth."""
    published(monkeypatch)
    few = {NAMES[1]: batch(IMAGES[:12], LABELS[:12]), NAMES[5]: batch(IMAGES[-3:], LABELS[-3:])}
    with pytest.raises(data.DataError, match="data_batch_1 was not found"):
        data.load("cifar10", unpacked(tmp_path, few)).split("train")
    dataset = data.load("cifar10", tmp_path, other_data=True)
    for name, rows in {"train": slice(11), "val": slice(11, 12), "test": slice(-3, None)}.items():
        np.testing.assert_array_equal(dataset.split(name).images, IMAGES[rows])
        np.testing.assert_array_equal(dataset.split(name).labels, LABELS[rows])
    assert dataset.note == data.OTHER_DATA and dataset.sha256 == {name: sha256(few[name]) for name in few}
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path / NAMES[1]} is not the published file: ") and said.count("\n") == 1
    assert said.endswith(f": {data.OTHER_DATA}\n")


def test_a_part_of_the_published_batches_is_other_data(tmp_path, monkeypatch, capsys):
    published(monkeypatch)
    dataset = data.load("cifar10", unpacked(tmp_path, {name: BATCHES[name] for name in NAMES[:2]}), other_data=True)
    np.testing.assert_array_equal(dataset.split("train").images, IMAGES[:36])
    assert dataset.note == data.OTHER_DATA
    assert capsys.readouterr().err == f"warning: cifar10 has 2 of 5 training batches: {data.OTHER_DATA}\n"


def test_the_published_batches_are_no_other_data_whatever_is_asked_for(tmp_path, monkeypatch, capsys):
    published(monkeypatch)
    check(data.load("cifar10", unpacked(tmp_path), other_data=True))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="needs CIFAR-10 in $VAMPVAE_DATA")
def test_the_real_images_are_read_as_they_are():
    dataset = data.load("cifar10", SHARED, other_data=True)
    splits = [dataset.split(name) for name in data.SPLITS]
    counts = (9_000, 1_000, 1_000) if dataset.note else tuple(cifar10.num_images.values())
    assert tuple(len(split.images) for split in splits) == counts
    assert splits[0].labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert splits[2].labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    np.testing.assert_allclose(splits[0].grey().mean((0, 1, 2)), (0.4914, 0.4822, 0.4465), atol=0.005)
    assert cifar10.class_names[splits[0].labels[0]] == "frog" and splits[0].images[0, 0, 0].tolist() == [59, 62, 63]


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", [NAMES[2], NAMES[5]])
def test_a_missing_batch_is_named_with_what_to_put_where(tmp_path, monkeypatch, cache, name):
    published(monkeypatch)
    unpacked(tmp_path, {one: BATCHES[one] for one in NAMES if one != name})
    with pytest.raises(data.DataError) as caught:
        data.load("cifar10", tmp_path).split("test" if name == NAMES[5] else "train")
    said = r"could not be downloaded \(localhost:1: .*refused\): put cifar-10-python.tar.gz into "
    assert re.search(f"cifar10's {name} was not found and {said}{cache / 'cifar10'}, or", str(caught.value))


@pytest.mark.parametrize("damage", [lambda content: content[:-9], damaged, lambda content: b""])
def test_a_damaged_batch_is_named(tmp_path, monkeypatch, damage):
    published(monkeypatch)
    path = unpacked(tmp_path, BATCHES | {NAMES[1]: damage(BATCHES[NAMES[1]])}) / NAMES[1]
    with pytest.raises(data.DataError, match=rf"^{path} is not the published file: .*, expected md5:\w{{32}}: delete"):
        data.load("cifar10", tmp_path).split("train")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda packed: packed[: len(packed) // 2], "is truncated or corrupted: it does not unpack"),
        (damaged, "is damaged, or no archive: |is truncated or corrupted: |is not the published file: |holds no file"),
        (lambda packed: b"<html>404</html>", "is damaged, or no archive: "),
        (lambda packed: tar({"readme": b"x"}), "holds no file cifar-10-batches-py/data_batch_1"),
        (lambda packed: tar(BATCHES | {NAMES[0]: b"x"}), "is not the published file: 1 bytes unpacked, expected"),
        (lambda packed: tar({NAMES[0]: bytes(9_000_000)}), "has more than 8,000,000 bytes unpacked"),
    ],
)
def test_another_archive_is_named(tmp_path, monkeypatch, change, complaint):
    monkeypatch.setattr("data.archives.MOST_BYTES", 8_000_000)
    put(tmp_path, {ARCHIVE.name: change(published(monkeypatch))})
    with pytest.raises(data.DataError, match=f"{ARCHIVE.name} .*({complaint})") as caught:
        data.load("cifar10", tmp_path).split("train")
    assert "delete it to download it again, or put the published file there" in str(caught.value)


class Call:
    """Its pickle calls a function."""

    def __reduce__(self):
        return os.system, ("touch hit",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (pickle.dumps(Call(), 2), r"it names (posix|nt)\.system, which is never loaded"),
        (batch(IMAGES[:EACH], LABELS[:EACH], more=Call()), r"it names (posix|nt)\.system, which is never loaded"),
        (batch(IMAGES[:EACH], LABELS[:EACH])[:-9], "is no pickle that is read: "),
        (pickle.dumps([1, 2], 2), "has no array data"),
        (batch(IMAGES[:EACH], LABELS[:EACH], data="abc"), "has no array data"),
        (batch(IMAGES[:EACH], LABELS[:EACH], data=np.zeros((EACH, 3071), np.uint8)), "has no array data"),
        (batch(IMAGES[:EACH], LABELS[:EACH], data=np.zeros((EACH, 3072))), "has no array data"),
        (batch(IMAGES[:EACH], LABELS[:EACH], labels=["cat"] * EACH), "has no list labels"),
        (batch(IMAGES[:EACH], LABELS[:EACH] + 1), "has no list labels"),
        (batch(IMAGES[:EACH], LABELS[:19]), "has 20 images and 19 labels"),
    ],
)
def test_a_batch_of_another_content_is_named_and_nothing_runs(tmp_path, monkeypatch, content, complaint):
    """Even where its checksum is right."""
    monkeypatch.chdir(tmp_path)
    published(monkeypatch, BATCHES | {NAMES[3]: content})
    unpacked(tmp_path, BATCHES | {NAMES[3]: content})
    with pytest.raises(data.DataError, match=f"^cifar10's {NAMES[3]}:? .*{complaint}"):
        data.load("cifar10", tmp_path).split("val")
    assert not (tmp_path / "hit").exists()


def test_a_published_batch_with_too_few_images_is_refused(tmp_path, monkeypatch):
    few = BATCHES | {NAMES[3]: batch(IMAGES[:10], LABELS[:10])}
    published(monkeypatch, few)
    with pytest.raises(data.DataError, match=r"cifar10's val images have shape \(9, 32, 32, 3\), expected \(10, 32, "):
        data.load("cifar10", unpacked(tmp_path, few)).split("val")


def test_colours_are_modelled_by_a_mixture_unless_told_otherwise():
    config = experiment.Config(data_set="cifar10")
    assert (config.observation, config.binarization, config.note) == ("mixlogistic", "none", "")


def test_channels_come_first_in_a_batch():
    rows = np.arange(3072).reshape(1, -1).astype(np.uint8)
    (image,), labels = parse_batch({"data": rows, "labels": [7]}, "x")
    assert image[0, 0].tolist() == [0, 1024 % 256, 2048 % 256] and image[1, 2, 0] == 34 and labels.tolist() == [7]


# ---------------------------------------------------------------------------------------------- end to end


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["elbo", "iwae", "lmcvae"])
def test_trained_scored_and_drawn(tmp_path, monkeypatch, capfd, objective):
    published(monkeypatch)
    words = (
        "--data_set cifar10 --epochs 1 --max_train_images 20 --batch_size 10 --network_size 0.25"
        + f" --objective {objective}"
        + " --likelihood gaussian --sigma 1" * (objective != "elbo")  # whose pixels are mixed logistics
        + " --num_steps 1" * objective.endswith("mcvae")
    )
    places = ["--data_dir", str(unpacked(tmp_path)), "--runs_dir", str(tmp_path / "runs")]
    assert train.main([*words.split(), *places]) == 0
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.startswith("cifar10_vae_standard_bs10_dim2_factor0.25_epochs1")
    run = experiment.load(path)
    assert run.note == ("" if objective == "elbo" else DENSITY_NOTE)
    assert run.images("train").shape == (20, 32, 32, 3)
    if objective in ("elbo", "iwae"):
        assert evaluate.main([str(path), "--num_samples", "3", "--max_images", "7"]) == 0
        assert (json.loads((path / "metrics.json").read_text())["bits_per_dim"] is None) == (
            objective == "iwae"
        )  # a density has no bits
    assert "Traceback" not in capfd.readouterr().err
