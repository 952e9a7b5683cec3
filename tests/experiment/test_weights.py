"""Weights files that somebody else may have written: what fits is taken, what is hostile or damaged is refused."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save

from experiment import weights

ARRAYS = {"q_z/kernel": np.arange(6, dtype="float32").reshape(2, 3), "q_z/bias": np.ones(4, "float32")}
ARRAYS |= {"beta": np.array(0.5, "float32"), "seed/0": np.array([1, 2], "uint32")}
EXPECTED = {name: SimpleNamespace(shape=array.shape, dtype=str(array.dtype)) for name, array in ARRAYS.items()}
HUGE = 2**40


@pytest.fixture
def path(tmp_path):
    """A file of ARRAYS."""
    (tmp_path / "a.safetensors").write_bytes(save(ARRAYS, {"run": "mnist"}))
    return tmp_path / "a.safetensors"


def refused(path, expected):
    with pytest.raises(ValueError, match=expected) as raised:
        weights.read(path, EXPECTED)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_what_is_written_is_read_back(path):
    found = weights.read(path, EXPECTED)
    assert {name: array.dtype for name, array in found.items()} == {name: a.dtype for name, a in ARRAYS.items()}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
    with weights.opened(path) as file:
        assert file.metadata() == {"run": "mnist"}
    assert path.read_bytes() == save(dict(reversed(ARRAYS.items())), {"run": "mnist"})
    with pytest.raises(FileNotFoundError):
        weights.read(path.with_name("nothing"), EXPECTED)


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("q_z/kernel", None, "it lacks q_z/kernel"),
        ("optimizer/0", np.zeros((2, 3), "float32"), "the model has no 'optimizer/0'"),
        ("x\n" * 10_000, np.zeros(2, "float32"), r"the model has no 'x\\nx"),
        ("q_z/kernel", np.zeros((3, 2), "float32"), r"q_z/kernel is F32 \(3, 2\), in the model F32 \(2, 3\)"),
        ("q_z/kernel", np.zeros((2, 1000), "float32"), r"q_z/kernel is F32 \(2, 1000\), in the model F32 \(2, 3\)"),
        ("q_z/kernel", np.zeros((2, 3)), r"q_z/kernel is F64 \(2, 3\), in the model F32"),
        ("q_z/kernel", np.zeros((1,) * 60, "float32"), r"q_z/kernel is F32 \(1, 1"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_arrays_than_the_models_are_named(path, name, array, expected):
    others = {key: value for key, value in ARRAYS.items() if key != name}
    path.write_bytes(save(others if array is None else others | {name: array}))
    refused(path, expected)


def headed(header, data=b"", length=None):
    """A file with this header, a text or what becomes JSON."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "a header of exabytes": headed("{}", length=2**63 - 1),
    "a header that is not there": headed("{}", length=weights.MOST_HEADER),
    "nested without end": headed("[" * 100_000),
    "an array that the file does not hold": headed({"q_z/kernel": entry([HUGE], 0, 4 * HUGE)}, bytes(24)),
    "a size that overflows": headed({"q_z/kernel": entry([2**62, 2**62], 0, 24)}, bytes(24)),
    "a negative size": headed({"q_z/kernel": entry([-2, -3], 0, 24)}, bytes(24)),
    "two arrays in one place": headed({"a": entry([6], 0, 24), "b": entry([6], 0, 24)}, bytes(24)),
    "an array from behind": headed({"q_z/kernel": entry([6], 24, 0)}, bytes(24)),
    "a hole": headed({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "bytes behind the end": headed({"q_z/kernel": entry([2, 3], 0, 24)}, bytes(25)),
    "fewer bytes than the shape needs": headed({"q_z/kernel": entry([2, 3], 0, 20)}, bytes(20)),
    "a type that there is not": headed({"q_z/kernel": entry([2, 3], 0, 24, "x\n" * 1000)}, bytes(24)),
    "no object": headed("[1, 2]"),
    "a pickle": b"\x80\x04cos\nsystem\n(S'echo'\ntR.",
    "a zip": b"PK\x03\x04" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_hostile_is_refused(path, content):
    path.write_bytes(content)
    refused(path, "it is no ")


def test_a_pipe_or_an_endless_file_is_no_weights_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="no regular file"):
            weights.read(tmp_path / name, EXPECTED)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_a_sentence(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "it is no whole safetensors file")


def test_a_file_that_is_cut_while_it_is_read_is_refused(path):
    with pytest.raises(ValueError, match="it is no whole safetensors file"), weights.opened(path) as file:
        os.truncate(path, path.stat().st_size - 20)
        weights.arrays(file, EXPECTED)


def test_arrays_that_memory_cannot_hold_are_a_sentence():
    """As those of a file with holes, which costs nobody a disk, beside a config.json that asks for as many weights."""

    def get_tensor(name):
        raise MemoryError

    stored = SimpleNamespace(get_dtype=lambda: "F32", get_shape=lambda: [HUGE])
    file = SimpleNamespace(keys=lambda: ["q_z"], get_slice=lambda name: stored, get_tensor=get_tensor)
    with pytest.raises(ValueError, match="its arrays are larger than the memory of this machine"):
        weights.arrays(file, {"q_z": SimpleNamespace(shape=(HUGE,), dtype="float32")})


@pytest.mark.keras
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_weight_that_is_no_number_is_named(value):
    import keras

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(3, dtype="bfloat16")])
    assert weights.not_finite(model) is None
    for number in (2, 1):
        model.layers[number - 1].bias.assign(np.float32([0, value, 0]))
        assert weights.not_finite(model) == f"dense_{number}/bias"
