"""How a user's own images are split and labelled, and what is said of what was taken and left out."""

import os

import numpy as np
import pytest
from PIL import Image

import data
from data.splits import MOST_CLASSES, arranged
from runtime.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 6, 4), np.uint8)


def write(folder, *names):
    """Different images of these names."""
    for name, image in zip(names, IMAGES, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return folder


def named(pattern, count):
    return [pattern.format(number) for number in range(count)]


def opened(folder):
    dataset = data.load(f"folder:{folder}")
    return dataset, {name: dataset.split(name) for name in data.SPLITS}


def grey(numbers):
    return {IMAGES[number].tobytes() for number in numbers}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "valid", "TEST"), ("training", "validation", "testing")],
)
def test_folders_of_these_names_are_the_splits(tmp_path, train, val, test):
    names = [*named(train + "/{}.png", 5), *named(val + "/{}.png", 2), *named(test + "/{}.png", 3)]
    dataset, splits = opened(write(tmp_path / "cats", *names))
    held = {"train": range(5), "val": range(5, 7), "test": range(7, 10)}
    assert {name: {image.tobytes() for image in splits[name].images} for name in held} == {
        name: grey(numbers) for name, numbers in held.items()
    }
    assert dataset.about == "folder:cats: 10 images 6x4 with 1 channel (5 train, 2 val, 3 test)"
    assert all(split.labels is None for split in splits.values())


def test_a_split_without_a_folder_is_a_tenth_of_train(tmp_path):
    names = [*named("train/{}.png", 30), *named("test/{}.png", 3)]
    dataset, splits = opened(write(tmp_path, *names))
    assert [len(split.images) for split in splits.values()] == [27, 3, 3]
    assert {image.tobytes() for image in splits["test"].images} == grey(range(30, 33))
    assert dataset.about.endswith("(27 train, 3 val, 3 test); val is a tenth of train, as no image is in such a folder")


def test_images_beside_a_folder_of_test_images_are_for_training(tmp_path):
    dataset, splits = opened(write(tmp_path, *named("{}.png", 20), *named("test/{}.png", 3)))
    assert [len(split.images) for split in splits.values()] == [18, 2, 3]
    assert {image.tobytes() for image in splits["test"].images} == grey(
        range(20, 23)
    ) and "left out" not in dataset.about


def test_images_outside_of_the_splits_are_left_out_and_counted(tmp_path):
    names = [*named("train/a/{}.png", 6), *named("train/z/{}.png", 6), *named("unlabelled/{}.png", 3), "one.png"]
    dataset, splits = opened(write(tmp_path, *names))
    assert sum(len(split.images) for split in splits.values()) == 12 and dataset.class_names == ("a", "z")
    assert "left out: 4 images outside of the folders train, val and test" in dataset.about


def test_one_folder_that_holds_all_of_it_is_passed_through(tmp_path):
    names = [*named("archive/data/train/{}.png", 20), *named("archive/data/test/{}.png", 3)]
    splits = opened(write(tmp_path, *names))[1]
    assert [len(split.images) for split in splits.values()] == [18, 2, 3]


def test_folders_called_train_inside_of_classes_are_no_splits_and_that_is_said(tmp_path):
    dataset, _ = opened(write(tmp_path, *named("cat/train/{}.png", 10), *named("dog/test/{}.png", 10)))
    assert dataset.about.endswith("; 2 classes; folders train, val or test inside of others are not used as splits")


@pytest.mark.parametrize(("above", "counts"), [("", [16, 2, 2]), ("train/", [16, 2, 2])])
def test_other_folders_are_classes(tmp_path, above, counts):
    names = [*named(above + "dog/{}.png", 12), *named(above + "cat/deep/{}.png", 8)]
    dataset, splits = opened(write(tmp_path, *names))
    assert dataset.class_names == ("cat", "dog") and "; 2 classes" in dataset.about
    assert [len(split.labels) for split in splits.values()] == counts
    dogs = grey(range(12))
    for split in splits.values():
        assert split.labels.dtype == np.int64
        assert [label == 1 for label in split.labels] == [image.tobytes() in dogs for image in split.images]


@pytest.mark.parametrize(
    ("sizes", "val", "test"),
    [
        ([30, 10, 20], [3, 1, 2], [3, 1, 2]),
        ([95, 5], [10, 0], [9, 1]),
        ([98, 2], [10, 0], [10, 0]),
        ([17, 1, 1, 1], [2, 0, 0, 0], [2, 0, 0, 0]),
        ([1] * 20, [1, 1] + [0] * 18, [0, 0, 1, 1] + [0] * 16),
    ],
)
def test_classes_have_their_share_of_each_split(sizes, val, test):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    found = arranged([""] * len(labels), labels, "x")
    assert np.bincount(found.labels[found.rows["val"]], minlength=len(sizes)).tolist() == val
    assert np.bincount(found.labels[found.rows["test"]], minlength=len(sizes)).tolist() == test
    assert sorted(np.concatenate([*found.rows.values()])) == [*range(len(labels))]
    again = arranged([""] * len(labels), labels, "x").rows
    assert all(np.array_equal(found.rows[name], again[name]) for name in data.SPLITS)


def test_images_without_classes_and_folders_of_splits_are_where_older_versions_had_them():
    order = np.random.RandomState(20180409).permutation(20).tolist()
    drawn = arranged([f"{n}.png" for n in range(20)], None, "x").rows
    assert [drawn[name].tolist() for name in ("val", "test", "train")] == [order[:2], order[2:4], order[4:]]
    names = [f"{split}/{name}/{n}.png" for split in data.SPLITS for name in "ab" for n in range(10)]
    assert arranged(names, None, "x").rows["train"].tolist() == order


def test_classes_have_the_same_numbers_in_all_splits(tmp_path):
    names = ["train/a/0.png", "train/c/1.png", "val/b/2.png", "val/a/3.png", "test/c/4.png"]
    dataset, splits = opened(write(tmp_path, *names))
    assert dataset.class_names == ("a", "b", "c")
    assert [sorted(split.labels.tolist()) for split in splits.values()] == [[0, 2], [0, 1], [2]]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([*named("cat/{}.png", 9), *named("dog/{}.png", 9), "0.png"], "no labels, as 1 images lie beside the folders"),
        (named("{}/0.png", MOST_CLASSES + 1), f"no labels, as 31 classes are more than the {MOST_CLASSES} that"),
        (named("all/{}.png", 12), None),
    ],
)
def test_where_there_are_no_labels_is_said(tmp_path, names, said):
    dataset, splits = opened(write(tmp_path, *names))
    assert dataset.class_names == () and all(split.labels is None for split in splits.values())
    assert said in dataset.about if said else dataset.about.endswith("test)")


def test_names_of_classes_are_plain_text():
    names = [f"{folder}/{number}" for folder in ("_a$b$", "<script>", "\udcff", "Ziffer ä") for number in range(5)]
    assert arranged(names, None, "x").class_names == ("-script-", "Ziffer ä", "a-b-", "-")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.repeat([3, 7], 10), ("3", "7")),
        (np.repeat([[3], [7]], 10, axis=0), ("3", "7")),
        (np.arange(20) > 9, ("False", "True")),
        (np.repeat(["a", "b"], 10), ()),
        (np.eye(20), ()),
        (np.arange(19), ()),
    ],
)
def test_labels_of_an_array(tmp_path, labels, expected):
    np.savez(tmp_path / "set.npz", images=IMAGES[:20], labels=labels)
    dataset, splits = opened(tmp_path / "set.npz")
    assert dataset.class_names == expected and (splits["val"].labels is None) == (not expected)
    assert ("left out: 1 labels.npy" in dataset.about) == (not expected)
    for split in splits.values() if expected else ():
        first = grey(range(10))
        assert [label == 0 for label in split.labels] == [image.tobytes() in first for image in split.images]


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    write(tmp_path / "cats", *named("{}.png", 12), ".hidden/1.png", ".2.png")
    for name in ("a.gif", "B.GIF", "c.heic", "d.jfif", "LICENSE", ".DS_Store"):
        (tmp_path / "cats" / name).write_bytes(b"")
    os.symlink(tmp_path, tmp_path / "cats" / "linked")
    dataset, _ = opened(tmp_path / "cats")
    start, _, kinds = dataset.about.partition("; left out: ")
    assert start == "folder:cats: 12 images 6x4 with 1 channel (10 train, 1 val, 1 test)"
    assert kinds == "3 hidden, 2 .gif, 1 .heic, 1 .jfif, 1 linked as a folder, 1 without a suffix"


def test_kinds_without_end_are_counted_together(tmp_path):
    write(tmp_path, *named("{}.png", 12))
    for number in range(11):
        (tmp_path / f"log.{number:02d}").touch()
    assert opened(tmp_path)[0].about.endswith(
        "left out: " + "".join(f"1 .{n:02d}, " for n in range(8)) + "3 of other kinds"
    )


def test_what_was_read_is_told_once(tmp_path, capsys):
    write(tmp_path / "told once", *named("{}.png", 12))
    for _ in range(2):
        opened(tmp_path / "told once")[0].tell()
    data.load("digits").tell()
    assert capsys.readouterr().err == "folder:told once: 12 images 6x4 with 1 channel (10 train, 1 val, 1 test)\n"


def test_splits_without_enough_images_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds 9 images to train on, and at least 10 are needed to split them"):
        opened(write(tmp_path / "a", *named("train/{}.png", 9)))
    with pytest.raises(DataError, match="holds 0 images to train on, and at least 1 is needed"):
        opened(write(tmp_path / "b", "val/0.png", "test/0.png"))
