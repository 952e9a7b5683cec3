"""A user's own images: what is read, how it is split and recognised, and what is refused."""

import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import data
from data import arrays, folder
from data.splits import arranged
from runtime.errors import DataError

N, H, W = 23, 12, 8
GREY = np.random.default_rng(0).integers(0, 256, (N, H, W), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (N, H, W, 3), np.uint8)


def write_pictures(path, arrays, suffix=".png"):
    path.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(path / f"{number:03d}{suffix}")
    return path


def load(path):
    return data.load(f"folder:{path}")


def everything(path):
    """The three splits of a user's own images, in order, and their Dataset."""
    dataset = load(path)
    return [dataset.split(name) for name in data.SPLITS], dataset


def rows(split, count=N):
    """The rows of a split of so many images without folders."""
    return arranged([""] * count, None, "x").rows[split]


def in_order(splits, count=N):
    """All images of the splits in the order in which they are stored."""
    images = np.concatenate([splits[1].images, splits[2].images, splits[0].images])
    return images[np.argsort(np.random.RandomState(20_180_409).permutation(count))]


# ---------------------------------------------------------------------------------------------- names


def test_the_name_says_which_folder_and_nothing_is_opened(tmp_path, monkeypatch):
    source = data.source("folder:/no/such/My cats.npz")
    assert source.name == "folder-My-cats-npz-c21ca84d" and source.image_shape is None
    assert load("/no/such/place").name.startswith("folder-place-")
    assert data.source("folder:/").name.startswith("folder-root-")
    assert len(data.source(f"folder:/{'x' * 300}").name) == len("folder-") + 40 + 9
    monkeypatch.chdir(tmp_path)
    assert data.source("folder:here").name == data.source(f"folder:{tmp_path}/there/../here").name
    assert data.absolute("folder:here") == f"folder:{tmp_path}/here" and data.absolute("mnist") == "mnist"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.absolute("folder:~/here") == f"folder:{tmp_path}/here"


@pytest.mark.parametrize(
    "name", ["folder:", "folder:a\0b", "folder:\ud800", "folder:" + "x" * 5000, "folder", "FOLDER:a"]
)
def test_what_could_be_no_path_is_no_data_set(name):
    assert name not in data.NAMES
    with pytest.raises(DataError, match="unknown data set"):
        data.load(name)


def test_names_are_listed_with_the_way_to_own_images():
    assert list(data.NAMES) == [*data.DATA_SETS, "folder:PATH"]
    assert "folder:x" in data.NAMES and "mnist" in data.NAMES and "cats" not in data.NAMES


# ---------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(("arrays", "shape"), [(GREY, (H, W, 1)), (COLOUR, (H, W, 3))])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".TIFF", ".ppm"])
def test_images_in_a_folder(tmp_path, arrays, shape, suffix):
    splits, dataset = everything(write_pictures(tmp_path / "cats", arrays, suffix))
    assert [len(split.images) for split in splits] == [19, 2, 2] and dataset.image_shape == shape
    assert all(split.labels is None and split.max_value == 255 for split in splits)
    np.testing.assert_array_equal(in_order(splits), arrays.reshape(N, *shape))
    assert dataset.source.binarize == "dynamic" and dataset.class_names == () and dataset.note == ""


def test_folders_inside_are_read_by_name_and_the_rest_is_passed_over(tmp_path):
    for number, array in enumerate(GREY):
        place = tmp_path / "abc"[number % 3] / f"{number:02d}" if number else tmp_path  # so there are no classes
        write_pictures(place, [array])
    order = sorted(range(N), key=lambda number: (number % 3, number))
    write_pictures(tmp_path / ".hidden", [COLOUR[0]])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".DS_Store.png").write_text("no image")
    os.symlink(tmp_path, tmp_path / "loop")
    np.testing.assert_array_equal(in_order(everything(tmp_path)[0])[..., 0], GREY[order])


def test_palettes_become_colours_and_two_levels_become_0_and_255(tmp_path):
    for number, array in enumerate(COLOUR):
        Image.fromarray(array).quantize(4).save(tmp_path / f"{number:02d}.png")
    assert everything(tmp_path)[1].image_shape == (H, W, 3)
    (tmp_path / "two").mkdir()
    for number, array in enumerate(GREY):
        Image.fromarray(array > 127).save(tmp_path / "two" / f"{number:02d}.png")
    splits, _ = everything(tmp_path / "two")
    np.testing.assert_array_equal(in_order(splits)[..., 0], 255 * (GREY > 127))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY[..., None]),
        (np.asfortranarray(GREY), GREY[..., None]),
        (COLOUR, COLOUR),
        (GREY > 99, 255 * (GREY[..., None] > 99)),
        (GREY.astype(">f4") / 255, GREY[..., None]),
        ((COLOUR / 255).astype(np.float16), COLOUR),
    ],
)
def test_one_array(tmp_path, array, expected, suffix):
    path = tmp_path / f"images.{suffix}"
    np.save(path, array) if suffix == "npy" else np.savez_compressed(path, any_name=array)
    splits, dataset = everything(path)
    np.testing.assert_array_equal(in_order(splits), expected)
    assert dataset.image_shape == expected.shape[1:] and dataset.name.startswith(f"folder-images-{suffix}-")


def test_of_several_arrays_the_one_called_images_is_taken(tmp_path):
    np.savez(tmp_path / "set.npz", labels=np.ones(N), images=GREY)
    np.testing.assert_array_equal(in_order(everything(tmp_path / "set.npz")[0])[..., 0], GREY)
    np.savez(tmp_path / "other.npz", labels=np.arange(N), x=GREY)
    with pytest.raises(DataError, match="holds 2 arrays, none of which is called images"):
        load(tmp_path / "other.npz").split("train")


# ---------------------------------------------------------------------------------------------- how it is recognised


def sums(path, split="train"):
    dataset = load(path)
    dataset.split(split)
    return dataset.sha256


def test_checksums_change_with_the_images_and_with_their_names(tmp_path):
    write_pictures(tmp_path, GREY)
    before, name = sums(tmp_path), load(tmp_path).name
    assert set(before) == {name, f"{name} train"} and sums(tmp_path) == before
    assert set(sums(tmp_path, "test")) == {name, f"{name} test"}
    train = rows("train")
    Image.fromarray(GREY[0] // 2).save(tmp_path / f"{train[0]:03d}.png")
    changed = sums(tmp_path)
    assert changed[name] == before[name] and changed[f"{name} train"] != before[f"{name} train"]
    write_pictures(tmp_path / "more", GREY[:1])
    assert sums(tmp_path)[name] != before[name]


def test_training_decodes_no_test_image(tmp_path, monkeypatch):
    write_pictures(tmp_path, GREY)
    opened, content = [], folder.file_content
    monkeypatch.setattr(folder, "file_content", lambda path, most: opened.append(int(path.stem)) or content(path, most))
    dataset = load(tmp_path)
    dataset.split("train")
    dataset.split("val")
    assert sorted([*opened, *rows("test")]) == list(range(N))


@given(st.integers(10, 400))
@settings(max_examples=30, deadline=None)
def test_every_image_is_in_one_split(count):
    parts = [rows(split, count) for split in data.SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(count)) and len(parts[1]) == len(parts[2]) == count // 10


# ---------------------------------------------------------------------------------------------- what is refused


def png_header(width, height):
    """A PNG that states this size and holds nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\0\0\0\x10IDAT"


def saved(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is damaged, or no image"),
        (b"<html>404</html>", "is damaged, or no image: cannot identify image file$"),
        (saved(Image.fromarray(GREY[0]))[:-30], "is damaged, or no image"),
        (png_header(2049, 2048), "is 2048x2049, more than 4,194,304 pixels: make it smaller"),
        (png_header(20_000, 5_000), "is damaged, or no image: Image size .* decompression bomb"),
        (png_header(60_000, 60_000), "is damaged, or no image: Image size .* decompression bomb"),
        (saved(Image.fromarray(GREY[0].T)), "is 8x12 with 1 channel, but .*000.png is 12x8 with 1 channel: make all"),
        (saved(Image.fromarray(COLOUR[0])), "is 12x8 with 3 channels, but"),
        (saved(Image.fromarray(COLOUR[0]).convert("RGBA")), r"is transparent \(Pillow's mode RGBA\): lay it on"),
        (saved(Image.fromarray(GREY[0].astype(np.uint16))), "is of Pillow's mode I;16: store it in 8 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 12\n%%EndComments\n", "is damaged, or no image"),
    ],
)
def test_an_image_that_cannot_be_taken_is_named(tmp_path, content, complaint):
    write_pictures(tmp_path, GREY)
    train = rows("train")
    path = tmp_path / f"{max(train):03d}.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        load(tmp_path).split("train")
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_what_is_no_file_is_never_waited_for(tmp_path):
    write_pictures(tmp_path, GREY)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png cannot be read: it is no regular file"):
        load(tmp_path).split("train")
    os.remove(tmp_path / "pipe.png")
    os.symlink("nowhere", tmp_path / "link.png")
    with pytest.raises(DataError, match=r"link\.png cannot be read: No such file"):
        load(tmp_path).split("train")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match=r"pipe.npy is neither a folder nor a \.npy or \.npz file"):
        load(tmp_path / "pipe.npy").split("train")


def test_places_without_enough_images_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"absent cannot be read \(No such file or directory\): name your folder"):
        load(tmp_path / "absent").split("train")
    np.save(tmp_path / "x.npy", GREY[:9])
    with pytest.raises(DataError, match=r"holds no image \(\.png, .*to use a \.npy or \.npz in it, name that file"):
        load(tmp_path).split("train")
    with pytest.raises(DataError, match="holds 9 images, and at least 10 are needed"):
        load(tmp_path / "x.npy").split("train")
    write_pictures(tmp_path, GREY[:9])
    with pytest.raises(DataError, match="holds 9 images, and at least 10 are needed"):
        load(tmp_path).split("train")
    monkeypatch.setattr(folder, "MOST_BYTES", 9 * H * W - 1)
    with pytest.raises(DataError, match="holds more than 0 GiB of images"):
        load(tmp_path).split("train")
    with pytest.raises(DataError, match=r"x.npy has more than 863 bytes"):
        load(tmp_path / "x.npy").split("train")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is damaged, or no array of numbers"),
        (npy(GREY)[:-1], r"is damaged: its array of shape \(23, 12, 8\) has other bytes"),
        (npy(GREY) + b"x", "has other bytes"),
        (npy(GREY).replace(b"(23,", b"(-3,"), "holds no array of numbers"),
        (npy(GREY).replace(b"(23, 12, 8), }" + b" " * 12, b"(" + b"9" * 22 + b",), }"), "damaged|other bytes"),
        (npy(np.array([{}])), "holds no array of numbers but object"),
        (npy(np.array(["a"])), "holds no array of numbers but <U1"),
        (npy(GREY[0]), r"has an array of shape \(12, 8\); expected \(N, H, W\)"),
        (
            npy(COLOUR.transpose(0, 3, 1, 2)),
            r"has an array of shape \(23, 3, 12, 8\); expected .*: store images.transpose\(0, 2, 3, 1\)",
        ),
        (npy(np.uint8(3)), r"has an array of shape \(\); expected"),
        (npy(GREY[:, :0]), r"has an array of shape \(23, 0, 8\); expected"),
        (npy(GREY.astype(float)), "has floats from [0-9]+ to 2[0-9]+; they must lie between 0 and 1"),
        (npy(np.full((N, H, W), np.nan)), "has values that are NaN or infinite"),
        (npy(GREY.astype(int)), "holds int64; make it uint8, 0 to 255, or floats from 0 to 1"),
        (npy(GREY // 200), "no value above 1 of 255: store 0 and 255"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_another_array_is_refused(tmp_path, content, complaint, packed):
    path = tmp_path / ("x.npz" if packed else "x.npy")
    path.write_bytes(content)
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("any.npy", content)
    with pytest.raises(DataError, match=complaint) as caught:
        load(path).split("train")
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (COLOUR, "mixlogistic"),
        (GREY, "logistic"),
        (255 * (GREY // 128), "bernoulli"),
        (np.where(GREY < 128, 0, GREY), "bernoulli"),  # drawn on black, with soft edges
        (np.where(GREY < 80, 0, GREY), "logistic"),  # a third of it black
    ],
)
def test_the_likelihood_that_images_call_for(tmp_path, array, expected):
    dataset = load(write_pictures(tmp_path, array.astype(np.uint8)))
    dataset.split("train")
    assert dataset.likelihood == expected
    assert {data.load(name).likelihood for name in ("mnist", "omniglot")} == {"bernoulli"}


@pytest.mark.parametrize("kind", ["RGB", "P"])
def test_grey_images_that_are_stored_as_colours_are_warned_of(tmp_path, kind, capsys):
    for number, image in enumerate(GREY):
        Image.fromarray(image).convert(kind).save(tmp_path / f"{number:02d}.png")
    dataset = everything(tmp_path)[1]
    assert dataset.image_shape == (H, W, 3) and dataset.likelihood == "mixlogistic"
    said = capsys.readouterr().err
    assert said.startswith(f"warning: the images in {tmp_path} are grey, but have 3 channels") and said.count("\n") == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_blank_images_in_a_small_split_are_taken(tmp_path, split):
    blank = GREY.copy()
    blank[rows(split)] = 0
    assert not load(write_pictures(tmp_path, blank)).split(split).images.any()
    with pytest.raises(DataError, match="has no value above 1 of 255"):
        load(write_pictures(tmp_path, 0 * GREY)).split("train")


@pytest.mark.parametrize("array", [GREY > 255, np.zeros((N, H, W)), (GREY / 255 / 255).astype(np.float32)])
def test_booleans_and_floats_have_no_range_to_be_judged(tmp_path, array, capsys):
    np.save(tmp_path / "x.npy", array)
    assert [split.images.max() <= 1 for split in everything(tmp_path / "x.npy")[0]] == [True] * 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("array", "largest"), [(GREY // 15, 17), (GREY // 2, 127), (GREY // 2 + 1, None)])
def test_bytes_of_less_than_eight_bits_are_warned_of_with_the_remedy(tmp_path, array, largest, capsys):
    for path in (write_pictures(tmp_path / "x", array), tmp_path / "x.npy"):
        np.save(tmp_path / "x.npy", array)
        everything(path)
        said = capsys.readouterr().err
        assert said.count("warning: ") == said.count("\n") == (largest is not None)
        assert f"is {largest} of 255" in said and f"images / {largest})" in said if largest else said == ""


def test_floats_of_python_have_no_range_to_be_judged_either(tmp_path, capsys):
    for largest in (0.004, 0.3, 1):
        dataset = data.load(arrays.stored(GREY / 255 * largest, tmp_path))
        found = np.concatenate([dataset.split(name).images for name in ("val", "test", "train")])
        assert found.max() == round(GREY.max() * largest) and capsys.readouterr().err == ""


def test_what_is_too_large_to_be_read_is_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="images has more than"):
        arrays.stored(GREY, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_small_file_takes_little_memory(tmp_path):
    np.save(tmp_path / "x.npy", GREY)
    tracemalloc.start()
    try:
        load(tmp_path / "x.npy").split("train")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20  # the limit on its size is 4 GiB
    finally:
        tracemalloc.stop()


def test_a_folder_that_has_moved_is_fetched_where_it_is(tmp_path, capsys):
    place = write_pictures(tmp_path / "here", GREY)
    assert data.fetch(f"folder:{tmp_path}/gone", place) == {}
    assert f"{N} images" in capsys.readouterr().err


def test_an_archive_that_is_none_or_a_bomb_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.npz").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match="is damaged, or no archive"):
        load(tmp_path / "x.npz").split("train")
    monkeypatch.setattr(folder, "MOST_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(50_000_000))
    with pytest.raises(DataError, match="has more than 100,000 bytes unpacked"):
        load(tmp_path / "bomb.npz").split("train")


@given(st.integers(0, 200), st.integers(1, 255), st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_a_changed_npy_is_an_array_or_a_data_error(position, change, cut):
    content = bytearray(npy(GREY[:2, :3, :2]))
    content[position % len(content)] ^= change
    try:
        array = folder.parse_npy(bytes(content[: len(content) - cut // 100]), "x")
    except DataError:
        return
    assert array.dtype.kind in "biuf" and array.nbytes <= len(content)
