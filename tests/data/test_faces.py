"""CelebA: images that stay on disk, in a folder or a zip, how they are split and recognised, and what is refused."""

import dataclasses
import io
import json
import os
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import called, sha256, slow_on_jax
from PIL import Image

import data
import evaluate
import experiment
import train
import vampvae
from data import faces
from data.dataset import Stored
from evaluation import estimators, score
from experiment.config import DENSITY_NOTE
from plotting import comparisons, run_figures
from plotting.view import View

COUNTS = {"train": 30, "val": 12, "test": 18}
N, (H, W, _) = sum(COUNTS.values()), faces.STORED
NAMES = [f"{number:06d}.jpg" for number in range(1, N + 1)]
PARTS = np.repeat(range(3), list(COUNTS.values()))
LIST = "".join(f"{name} {part}\n" for name, part in zip(NAMES, PARTS, strict=True)).encode()

pytestmark = pytest.mark.usefixtures("cache")


def jpeg(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def smooth(seed):
    """An image that looks the same at any resolution, as colours that change slowly."""
    corners = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((W, H), Image.Resampling.BICUBIC))


FILES = {name: jpeg(smooth(number), quality=95) for number, name in enumerate(NAMES)}


def write(place, kind="folder", files=FILES, partition=LIST):
    """Puts images and their partition into a folder, which it returns."""
    place.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        (place / "img_align_celeba").mkdir()
        for name, content in files.items():
            (place / "img_align_celeba" / name).write_bytes(content)
    else:
        with zipfile.ZipFile(place / "img_align_celeba.zip", "w") as archive:
            archive.mkdir("img_align_celeba")
            for name, content in files.items():
                archive.writestr(f"img_align_celeba/{name}", content)
    if partition is not None:
        (place / "list_eval_partition.txt").write_bytes(partition)
    return place


def load(place, other_data=True):
    return data.load("celeba", place, other_data)


def expected(name):
    """The same by a plain mean over the pixels that one stands for, which the filter is close to on smooth images."""
    middle = np.asarray(Image.open(io.BytesIO(FILES[name]))).astype(float)[35:183, 15:163]
    edges = np.linspace(0, 148, 65).round().astype(int)
    sums = np.add.reduceat(np.add.reduceat(middle, edges[:-1], 0), edges[:-1], 1)
    return sums / np.outer(np.diff(edges), np.diff(edges))[..., None]


# ---------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("place", [".", "celeba"])
def test_images_are_split_by_the_partition_and_cropped(tmp_path, kind, place):
    write(tmp_path / place, kind)
    dataset = load(tmp_path)
    start = 0
    for name, count in COUNTS.items():
        split = dataset.split(name)
        assert isinstance(split.images, Stored) and split.images.shape == (count, 64, 64, 3) and split.labels is None
        middle = split.images[count // 2]
        assert middle.dtype == np.uint8 == split.images.dtype
        assert np.abs(middle - expected(NAMES[start + count // 2])).max() < 6
        start += count
    assert dataset.image_shape == (64, 64, 3) and dataset.note == data.OTHER_DATA


def test_a_folder_and_a_zip_of_the_same_images_are_the_same_data(tmp_path):
    places = [write(tmp_path / kind, kind) for kind in ("folder", "zip")]
    folder, packed = (load(place) for place in places)
    np.testing.assert_array_equal(folder.split("val").images[:], packed.split("val").images[:])
    assert folder.sha256.items() < packed.sha256.items()
    assert set(packed.sha256) == {"img_align_celeba", "img_align_celeba.zip", "list_eval_partition.txt"}
    other = write(tmp_path / "other", "zip", FILES | {NAMES[-1]: FILES[NAMES[0]]})
    changed = load(other)
    changed.split("train")
    assert {name for name in packed.sha256 if changed.sha256[name] != packed.sha256[name]} == {
        "img_align_celeba",
        "img_align_celeba.zip",
    }


def test_the_published_partition_is_known_by_its_checksum():
    partition = faces.published_partition()
    assert len(partition) == 202_599 and (partition["162770.jpg"], partition["162771.jpg"]) == (0, 1)
    assert (partition["182637.jpg"], partition["182638.jpg"], partition["202599.jpg"]) == (1, 2, 2)
    published = "".join(f"{name} {part}\r\n" for name, part in partition.items()).encode()
    assert faces.parse_partition(published, "x") == partition == faces.parse_partition(published.strip(), "x")
    assert sha256(published) == faces.PARTITION_SHA256
    assert faces.celeba.num_images == {"train": 162_770, "val": 19_867, "test": 19_962}


@pytest.fixture
def small(monkeypatch):
    """Publishes a CelebA of 60 images."""
    monkeypatch.setattr(faces, "LAST", np.cumsum(list(COUNTS.values())))
    monkeypatch.setattr(faces, "PARTITION_SHA256", sha256(LIST.replace(b"\n", b"\r\n")))
    source = dataclasses.replace(faces.celeba, num_images=COUNTS)
    monkeypatch.setitem(data.DATA_SETS, "celeba", source)


@pytest.mark.parametrize("place", [".", "CelebA/Img"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_all_images_need_no_partition(small, tmp_path, capsys, kind, place):
    write(tmp_path / place, kind, partition=None)
    dataset = load(tmp_path, other_data=False)
    assert {name: len(dataset.split(name).images) for name in data.SPLITS} == COUNTS
    assert dataset.note == "" and capsys.readouterr().err == ""


def test_a_partition_of_ones_own_is_refused_unless_it_is_asked_for(tmp_path, capsys):
    write(tmp_path)
    with pytest.raises(data.DataError) as caught:
        load(tmp_path, other_data=False).split("train")
    said = "celeba's images or splits are not those of the published partition: "
    mend = "put all images there, and no list_eval_partition.txt of your own"
    assert str(caught.value) == f"{said}{mend}; a run that is trained with --other_data on takes it as it is"
    load(tmp_path).split("train")
    assert capsys.readouterr().err == f"warning: {said}{data.OTHER_DATA}\n"


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path, monkeypatch):
    read, pixels = [], faces.file_content
    monkeypatch.setattr(faces, "file_content", lambda path, most: read.append(path.name) or pixels(path, most))
    dataset = load(write(tmp_path))
    split = dataset.split("train")
    held_out = data.held_out(dataset, "val", "auto")
    assert read == ["list_eval_partition.txt"]  # and of the images nothing
    assert split.images[[4, 1]].shape == split.grey([1, 4]).shape == (2, 64, 64, 3)
    assert held_out[2:4].dtype == np.float32 and held_out.shape == (12, 64, 64, 3) and len(held_out) == 12
    assert read[1:] == [NAMES[number] for number in (4, 1, 1, 4, 32, 33)]
    assert len(split.at([1, 2, 5]).images) == 3 and len(data.held_out(dataset, "val", "none", np.arange(5))) == 5
    assert len(read) == 7


def test_stored_images_are_indexed_as_arrays_are():
    values = np.random.default_rng(0).integers(0, 256, (7, 3, 2, 1), np.uint8)
    stored = Stored(values.__getitem__, np.arange(7), (3, 2, 1))
    split = data.Split(stored, None, 255)
    for index in (3, -1, slice(None), slice(2, 5), slice(5, 99), slice(0), [4, 4, 0], np.array([[1, -1], [0, 2]])):
        np.testing.assert_array_equal(stored[index], values[index])
        np.testing.assert_array_equal(split.grey()[index], data.Split(values, None, 255).grey(index))
    assert stored[:0].shape == (0, 3, 2, 1) and stored.at(slice(None)).shape == values.shape == split.grey().shape
    with pytest.raises(IndexError):
        stored[7]
    assert len(list(stored)) == 7


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_missing_celeba_is_said_with_where_to_get_it(tmp_path, cache):
    with pytest.raises(data.DataError) as caught:
        load(tmp_path).split("train")
    assert str(caught.value) == (
        "celeba's img_align_celeba.zip was not found and could not be downloaded (only by hand, from "
        f"http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html): put img_align_celeba.zip into {cache / 'celeba'}, "
        "or into a folder that --data_dir or $VAMPVAE_DATA names"
    )
    assert data.found("celeba", tmp_path) == [("img_align_celeba.zip", None)]


@pytest.mark.parametrize("kind", ["folder", "zip", "folder in a folder"])
def test_what_has_no_checksum_is_looked_into_when_it_is_fetched(small, tmp_path, kind, capsys):
    if kind == "folder in a folder":
        write(tmp_path / "img_align_celeba", "folder", partition=None)
    else:
        write(tmp_path, kind, partition=None)
    path = tmp_path / ("img_align_celeba.zip" if kind == "zip" else "img_align_celeba")
    assert called(vampvae.main, "data", "celeba", "--data_dir", tmp_path) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"celeba: {path}, ") and said.endswith(": readable; its checksum is not known\n")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (None, "img_align_celeba.zip is a web page, as a site sends where a quota is used up"),
        (dict.fromkeys(FILES, b"<!DOCTYPE html>"), "000001.jpg is damaged, or no image"),
        (dict(list(FILES.items())[1:]), "holds 59 images, and no 000001.jpg"),
    ],
)
def test_a_web_page_is_no_data_set(small, tmp_path, files, complaint, capsys):
    if files is None:
        (tmp_path / "img_align_celeba.zip").write_bytes(b"\n<!DOCTYPE html><title>Quota exceeded</title>")
    else:
        write(tmp_path, "folder", files, partition=None)
    assert called(vampvae.main, "data", "celeba", "--data_dir", tmp_path) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("files", "partition", "complaint"),
    [
        (
            FILES,
            None,
            r"img_align_celeba\S* holds 60 images, and no 000061.jpg of the 202,599 .*: put all of them there",
        ),
        ({}, None, "holds 0 images, and no 000001.jpg"),
        (dict(list(FILES.items())[:-1]), LIST, "holds 59 images, and no 000060.jpg of the 60 that are expected"),
        (FILES | {"cat.jpg": b""}, LIST, "holds cat.jpg, which .*list_eval_partition.txt does not list"),
        (FILES, LIST.replace(b" 1", b" 3"), "list_eval_partition.txt, line 31: expected the name of a .jpg, once, and"),
        (FILES, LIST + b"000001.jpg 0\n", "list_eval_partition.txt, line 61: expected"),
        (FILES, b"\xff\x00", "list_eval_partition.txt, line 1: expected"),
        (FILES, LIST.replace(b" 1", b" 0"), "list_eval_partition.txt lists no image for val"),
        (FILES, b"", "list_eval_partition.txt lists no image for train"),
        (FILES, bytes(9 << 20), "list_eval_partition.txt has more than 8,388,608 bytes"),
    ],
)
def test_images_that_are_not_those_of_a_partition_are_refused(tmp_path, kind, files, partition, complaint):
    write(tmp_path, kind, files, partition)
    with pytest.raises(data.DataError, match=complaint) as caught:
        load(tmp_path).split("test")
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"no image", "is damaged, or no image: cannot identify image file"),
        (FILES[NAMES[0]][:-500], "is damaged, or no image: image file is truncated"),
        (jpeg(smooth(0)[:-1]), "is 217x178 with 3 channels, but those of CelebA are 218x178 with 3 channels"),
        (jpeg(smooth(0)[..., 0]), "is 218x178 with 1 channel, but"),
        (b"GIF89a" + bytes(50), "is damaged, or no image"),
    ],
)
def test_a_file_that_is_no_image_is_named_when_it_is_read(tmp_path, kind, content, complaint):
    images = load(write(tmp_path, kind, FILES | {NAMES[31]: content})).split("val").images
    assert images[[0, 2]].shape == (2, 64, 64, 3)
    with pytest.raises(data.DataError, match=rf"img_align_celeba\S*/000032.jpg {complaint}"):
        images[:]


def test_a_damaged_zip_is_refused(tmp_path):
    path = write(tmp_path, "zip") / "img_align_celeba.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DataError, match=f"{path} is damaged, or no archive"):
        load(tmp_path).split("train")
    place = whole.index(FILES[NAMES[0]]) + 3000
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    with pytest.raises(data.DataError, match=f"000001.jpg in {path} is damaged, or no archive: Bad CRC-32"):
        load(tmp_path).split("train").images[0]


def test_a_zip_of_bombs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "MOST_FILE", 100_000)
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in NAMES:
            archive.writestr(f"img_align_celeba/{name}", bytes(1_000_000))
    (tmp_path / "list_eval_partition.txt").write_bytes(LIST)
    with pytest.raises(data.DataError, match=r"000001.jpg in .* has more than 100,000 bytes unpacked"):
        load(tmp_path).split("train").images[0]


def test_what_is_no_file_is_not_read(tmp_path):
    write(tmp_path)
    (tmp_path / "img_align_celeba" / NAMES[0]).unlink()
    os.mkfifo(tmp_path / "img_align_celeba" / NAMES[0])
    with pytest.raises(data.DataError, match=r"000001.jpg cannot be read: it is no regular file"):
        load(tmp_path).split("train").images[0]


@pytest.mark.parametrize("mode", ["dynamic", "threshold"])
def test_images_on_disk_are_not_binarized(tmp_path, mode):
    complaint = "celeba is read from disk as it is needed, and not binarized: say --binarize none"
    with pytest.raises(data.DataError, match=complaint):
        data.held_out(load(write(tmp_path)), "val", mode)
    for likelihood in ("bernoulli", "gaussian"):
        with pytest.raises(data.DataError, match=complaint):
            experiment.Config(data_set="celeba", likelihood=likelihood, binarize=mode)


# ---------------------------------------------------------------------------------------------- end to end


SETTINGS = "--data_set celeba --likelihood gaussian --sigma 1 --epochs 1 --max_train_images 12 --batch_size 6 \
    --network_size 0.1 --num_pseudo_inputs 3"


def trained(tmp_path, *words):
    """Trains on images in tmp_path; returns the exit code."""
    words = ["--other_data", "on", *words]
    return train.main([*SETTINGS.split(), "--data_dir", str(tmp_path), "--runs_dir", str(tmp_path / "runs"), *words])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["elbo", "iwae", "amcvae"])
def test_trained_scored_and_drawn(tmp_path, capfd, objective):
    write(tmp_path, "zip" if objective == "iwae" else "folder")
    prior = "vamp" if objective == "elbo" else "standard"
    assert trained(tmp_path, "--objective", objective, "--prior", prior) == 0
    (path,) = (tmp_path / "runs").iterdir()
    run = experiment.load(path)
    assert run.note == f"{DENSITY_NOTE}; {data.OTHER_DATA}" and run.images("train").shape == (12, 64, 64, 3)
    if objective == "elbo":
        assert evaluate.main([str(path), "--num_samples", "3", "--max_images", "7"]) == 0
        metrics = json.loads((path / "metrics.json").read_text())
        held_out = run.dataset.split("test").grey(run.index("test", 7))
        assert metrics["images_sha256"] == sha256(np.ascontiguousarray(held_out))
        view = View(run, "pca")
        assert (
            run_figures.draw_input(view) and run_figures.draw_reconmanifold(view) and view.embedding.z.shape == (18, 2)
        )
        assert comparisons.drawn_of(view).originals.shape == (10, 64, 64, 3)
    assert "Traceback" not in capfd.readouterr().err


@slow_on_jax
@pytest.mark.keras
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_cannot_be_read_ends_training_in_a_sentence(tmp_path, capfd, split):
    """Where Keras asks for it in a thread of its own: not in one of the first two batches."""
    order = np.random.default_rng(experiment.Config().stream("order", 0)).permutation(12)
    broken = order[-1] if split == "train" else 33
    write(tmp_path, files=FILES | {NAMES[broken]: b"no image"})
    assert trained(tmp_path, "--batch_size", "3") == 1
    said = rf"error: {tmp_path}/img_align_celeba/{NAMES[broken]} is damaged, or no image: .*; the finished epochs are"
    assert re.search(said, capfd.readouterr().err)
    (path,) = (tmp_path / "runs").iterdir()
    status = json.loads((path / "status.json").read_text())
    assert status["state"] == "failed" and NAMES[broken] in status["message"]


def test_images_are_hashed_in_pieces(monkeypatch):
    images = np.random.default_rng(0).random((7, 3, 2, 1), np.float32)
    for piece in (1, 3, 7, 500):
        monkeypatch.setattr(score, "PIECE", piece)
        assert score.sha256_of(images) == sha256(images)


def test_quadrature_takes_no_more_from_disk_than_memory_should_hold(monkeypatch):
    stored = Stored(None, np.arange(9), (3, 2, 1))
    monkeypatch.setattr(estimators, "MOST_READ", 8 * 3 * 2 * 4)
    with pytest.raises(evaluate.UserError, match="quadrature keeps all images in memory; add --max_images 8"):
        estimators.by_quadrature(
            SimpleNamespace(path="a run"), data.Split(stored, None, 255).grey(), None, "test", None
        )
