"""Weights files that somebody else may have written: what Keras writes is taken, what is hostile is refused."""

import os

import h5py
import numpy as np
import pytest

from experiment import weights

SHAPES = [(2, 3), (4,), ()]


@pytest.fixture
def path(tmp_path):
    """A file with arrays of SHAPES, a state of an optimizer beside them."""
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for number, shape in enumerate(SHAPES):
            file[f"layers/dense_{number}/vars/0"] = np.zeros(shape, "float32")
        file["optimizer/vars/0"] = np.zeros((2, 3), "float32")
    return tmp_path / "a.weights.h5"


def refused(path, expected):
    with pytest.raises(ValueError, match=expected):
        weights.check(path, SHAPES)


def test_the_shapes_of_the_model_are_taken_in_any_order(path):
    weights.check(path, SHAPES)
    weights.check(path, SHAPES[::-1])
    with pytest.raises(ValueError, match="it holds 3 arrays, the model 2"):
        weights.check(path, SHAPES[:2])
    with pytest.raises(ValueError, match=r"it holds an array of shape \(2, 3\) where the model has \(3, 2\)"):
        weights.check(path, [(3, 2), (4,), ()])
    with pytest.raises(FileNotFoundError):
        weights.check(path.with_name("nothing"), SHAPES)


def add(path, name, item):
    with h5py.File(path, "a") as file:
        file[name] = item


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (h5py.SoftLink("/layers/dense_0/vars/0"), "it holds a link"),
        (h5py.ExternalLink("/etc/passwd", "/"), "it holds a link"),
        ("text", "something else than plain arrays of numbers"),
        (np.zeros(3, [("a", "f4")]), "something else than plain arrays of numbers"),
        (np.zeros(7), r"it holds an array of shape \(7,\), or too many"),
    ],
    ids=str,
)
def test_what_is_no_array_of_numbers_of_the_right_size_is_refused(path, item, expected):
    add(path, "more", item)
    refused(path, expected)


@pytest.mark.parametrize("packing", [{"compression": "gzip"}, {"shuffle": True}, {"chunks": (1, 3)}], ids=str)
def test_arrays_that_are_packed_are_refused_without_unpacking(path, packing):
    with h5py.File(path, "a") as file:
        del file["layers/dense_0/vars/0"]
        file.create_dataset("layers/dense_0/vars/0", data=np.zeros((2, 3), "float32"), **packing)
    refused(path, "something else than plain arrays of numbers")


def test_a_pipe_is_no_weights_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.weights.h5")
    with pytest.raises(OSError, match="no regular file"):
        weights.check(tmp_path / "pipe.weights.h5", SHAPES)


def test_arrays_that_lie_elsewhere_are_refused(path, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(24))
    with h5py.File(path, "a") as file:
        del file["layers/dense_0/vars/0"]
        external = [(str(tmp_path / "secret"), 0, 24)]
        file.create_dataset("layers/dense_0/vars/0", shape=(2, 3), dtype="f4", external=external)
    refused(path, "something else than plain arrays of numbers")


def test_an_array_of_gigabytes_that_the_file_does_not_hold_is_never_read(path):
    with h5py.File(path, "a") as file:
        file.create_group("optimizer/huge").create_dataset("0", shape=2**29 - 1, dtype="f8")
        del file["layers/dense_0/vars"]
        file["layers/dense_0/vars"] = file["optimizer/huge"]  # a second name for the group
    assert path.stat().st_size < 100_000
    refused(path, r"it holds an array of shape \(536870911,\), or too many")


def test_a_file_that_the_library_reads_for_ever_is_refused(path, monkeypatch):
    content = path.read_bytes()
    heap = content.index(b"HEAP")
    free, start = (int.from_bytes(content[heap + at :][:8], "little") for at in (16, 24))
    path.write_bytes(content[: start + free] + free.to_bytes(8, "little") + content[start + free + 8 :])  # a loop
    monkeypatch.setattr(weights, "SECONDS", 3)
    refused(path, "it cannot be read in 3 seconds")


def test_a_text_beside_an_array_that_is_read_for_ever_is_refused(path, monkeypatch):
    with h5py.File(path, "a") as file:
        file["layers/dense_0/vars/0"].attrs["dtype"] = "float32"
    content = path.read_bytes()
    end = content.rindex(b"float32") + 16  # of the text; there the size of the heap's rest stands
    path.write_bytes(content[:end] + bytes(8) + content[end + 8 :])
    monkeypatch.setattr(weights, "SECONDS", 3)
    refused(path, "it cannot be read in 3 seconds")


def test_a_crash_of_the_library_is_not_ours(path, monkeypatch, tmp_path):
    (tmp_path / "crash.py").write_text("import os; os.abort()")
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "crash.py"))
    refused(path, "the HDF5 library crashes when it reads it")


@pytest.mark.parametrize("kept", [0, 8, 100, 1000, -1])
def test_a_truncated_file_is_a_sentence(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError) as raised:
        weights.check(path, SHAPES)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


@pytest.mark.keras
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_weight_that_is_no_number_is_named(value):
    import keras

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(3, dtype="bfloat16")])
    assert weights.not_finite(model) is None
    for layer in model.layers[::-1]:
        layer.bias.assign(np.float32([0, value, 0]))
        assert weights.not_finite(model) == layer.bias.path
