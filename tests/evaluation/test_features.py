"""The classifier whose features judge samples: how it is trained and kept, and which networks are refused."""

import hashlib
import json
import os
import zipfile

import keras
import numpy as np
import pytest
from conftest import slow_on_jax
from keras import layers

import data
import vampvae
from data import OTHER_DATA
from data.dataset import Stored
from evaluation import features
from experiment.record import versions
from runtime.errors import UserError

pytestmark = pytest.mark.keras
IMAGES = np.random.default_rng(0).random((7, 8, 6, 2), "float32")  # H, W and C differ


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The file of a classifier of digits, trained for two epochs, which no test changes."""
    path = tmp_path_factory.mktemp("features") / "new" / "digits.keras"
    assert vampvae.main(["features", "--data_set", "digits", "--epochs", "2", "--seed", "3", "--out", str(path)]) == 0
    return path


@pytest.fixture
def saved(tmp_path):
    """Saves a network of images (8, 6, 2), given by what it does to its input, and returns its file."""

    def save(*outputs, shape=(8, 6, 2)):
        image = keras.Input(shape)
        made = [output(image) for output in outputs]
        keras.Model(image, made[0] if len(made) == 1 else made).save(tmp_path / "own.keras")
        return tmp_path / "own.keras"

    return save


def edited(path, change, name="config.json"):
    """The file with the JSON inside it changed by `change`, as somebody with bad intentions would."""
    with zipfile.ZipFile(path) as archive:
        parts = {one: archive.read(one) for one in archive.namelist()}
    content = json.loads(parts[name])
    change(content)
    with zipfile.ZipFile(path, "w") as archive:
        for one, value in (parts | {name: json.dumps(content)}).items():
            archive.writestr(one, value)
    return path


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        features.load(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# ---------------------------------------------------------------------------------------------- training


@slow_on_jax
def test_the_record_says_what_the_network_is_and_how_good(digits):
    record = json.loads(digits.with_suffix(".json").read_text())
    assert {name: record[name] for name in ("data_set", "layer", "epochs", "seed", "image_shape", "note")} == {
        "data_set": "digits", "layer": "features", "epochs": 2, "seed": 3, "image_shape": [8, 8, 1], "note": "",
    }  # fmt: skip
    assert record["backend"] == os.environ["KERAS_BACKEND"] and record["versions"] == versions()
    dataset, network = data.load("digits"), features.load(digits)
    model = keras.saving.load_model(digits)
    for split in ("val", "test"):  # so the weights are those of the best epoch
        found = model.predict(dataset.split(split).grey(), verbose=0).argmax(axis=1)
        assert np.mean(found == dataset.split(split).labels) == pytest.approx(record[f"{split}_accuracy"], abs=1e-6)
    assert record["val_accuracy"] > 0.3 and record["data_sha256"] == dataset.sha256  # of chance, 0.1
    assert network.said == f"{digits}, a classifier of digits with test accuracy {record['test_accuracy']:.4f}"
    assert sorted(path.name for path in digits.parent.iterdir()) == ["digits.json", "digits.keras"]


def test_features_are_those_of_the_layer_before_the_logits(digits, monkeypatch):
    monkeypatch.setattr(features, "BATCH", 100)
    x, network = data.load("digits").split("val").grey(slice(250)), features.load(digits)
    found = network.of(x)
    assert found.shape == (250, features.NUM_FEATURES) and found.dtype == np.float64 and found.min() == 0
    weight, bias = keras.saving.load_model(digits).layers[-1].get_weights()
    logits = keras.saving.load_model(digits).predict(x, verbose=0)
    np.testing.assert_allclose(found @ weight + bias, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.of(x[:3]), found[:3], rtol=1e-4, atol=1e-5)


def test_a_seed_gives_the_same_network_again(digits, tmp_path):
    words = ["features", "--data_set", "digits", "--epochs", "2", "--out", str(tmp_path / "again.keras")]
    assert vampvae.main([*words, "--seed", "3"]) == 0
    ours, theirs = (keras.saving.load_model(path).get_weights() for path in (digits, tmp_path / "again.keras"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_there_is_replaced_only_on_request(digits, tmp_path, capfd, monkeypatch):
    words = ["features", "--data_set", "digits", "--epochs", "2", "--out", str(digits)]
    assert vampvae.main(words) == 2
    assert capfd.readouterr().err.startswith(f"error: {digits} exists, and scores may refer to it")
    path = tmp_path / "a.keras"
    path.write_text("an older one")
    record = {"val_accuracy": 0.5, "test_accuracy": 0.25}
    monkeypatch.setattr(features, "train", lambda *_: (features.classifier((8, 8, 1), 10), record))
    assert vampvae.main([*words[:-1], str(path), "--overwrite"]) == 0
    said = f"accuracy 0.5000 on validation images, 0.2500 on test images\n{path}\n"
    assert capfd.readouterr().out == said and zipfile.is_zipfile(path)
    assert json.loads((tmp_path / "a.json").read_text())["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data_set", "omniglot"], "omniglot has no classes that are known before it is read"),
        (["--data_set", "folder:."], "folder:. has no classes that are known before it is read"),
        (["--data_set", "digits", "--out", "a.h5"], "a.h5 must end in .keras"),
        (["--data_set", "digits", "--out", "README.md/a.keras"], "cannot write README.md/a.keras: "),
    ],
)
def test_what_cannot_be_trained_is_refused_first(words, expected, capfd, monkeypatch):
    monkeypatch.setattr(features, "train", lambda *_: pytest.fail("trained"))
    assert vampvae.main(["features", *words]) == 2 and f"error: {expected}" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------- networks of others


def test_a_network_of_a_users_own_is_taken_by_its_output(saved):
    path = saved(lambda x: layers.Dropout(0.5)(layers.BatchNormalization()(layers.Flatten()(x))))
    network = features.load(path)
    assert network.said == str(path) and network.record == {}
    np.testing.assert_allclose(network.of(IMAGES), IMAGES.reshape(7, -1), rtol=1e-3)


def test_images_that_stay_on_disk_are_read_in_pieces(saved, monkeypatch):
    monkeypatch.setattr(features, "PIECE", 3)
    network = features.load(saved(layers.Flatten()))
    bytes_of = (255 * IMAGES).astype("uint8")
    stored = Stored(lambda name: bytes_of[name], np.arange(7), (8, 6, 2)).grey(255)
    np.testing.assert_allclose(network.of(stored), bytes_of.reshape(7, -1) / 255, rtol=1e-6)


def test_a_network_of_other_data_says_so(digits):
    network = features.load(digits)
    assert f"{digits}, a classifier of digits with test accuracy 0." in network.said
    network.record["note"] = OTHER_DATA
    assert f"a classifier of digits ({OTHER_DATA}) with test accuracy 0." in network.said


def test_maps_of_features_are_averaged_over_the_image(saved):
    network = features.load(saved(layers.Conv2D(5, 3), shape=(None, None, 2)))
    network.check((8, 6, 2))
    expected = np.asarray(network.model(IMAGES), "float64").mean(axis=(1, 2))
    np.testing.assert_allclose(network.of(IMAGES), expected, rtol=1e-4, atol=1e-6)
    assert expected.shape == (7, 5)


def test_images_of_another_shape_are_refused(saved):
    network = features.load(saved(layers.Flatten()))
    network.check((8, 6, 2))
    for shape in ((6, 8, 2), (8, 6, 1), (8, 6)):
        with pytest.raises(UserError, match=r"takes images \(8, 6, 2\), but these are"):
            network.check(shape)


def test_features_that_are_not_numbers_are_refused(saved):
    network = features.load(saved(lambda x: layers.Flatten()(keras.ops.log(x))))
    with pytest.raises(UserError, match="features that are not finite"):
        network.of(0 * IMAGES)


def test_other_outputs_and_inputs_are_refused(saved, tmp_path):
    refused(saved(layers.Reshape((8, 12))), "has outputs (None, 8, 12); features must be (None, F) or (None, h, w, F)")
    refused(saved(layers.Flatten(), layers.Flatten()), "has outputs (None, 96) and (None, 96)")
    two = [keras.Input((8, 6, 2)), keras.Input((8, 6, 2))]
    keras.Model(two, layers.Flatten()(layers.Add()(two))).save(tmp_path / "two.keras")
    refused(tmp_path / "two.keras", "must have one input")


# ---------------------------------------------------------------------------------------------- no trust


def test_code_in_a_network_is_refused(saved):
    safely = "cannot be loaded safely: "
    refused(saved(lambda x: layers.Flatten()(layers.Lambda(lambda y: 2 * y)(x))), safely, "Python lambda")

    def other(module, name):
        return lambda config: config["config"]["layers"][1].update(module=module, class_name=name)

    refused(edited(saved(layers.Flatten()), other("os", "system")), safely, "Could not locate class 'system'")
    refused(edited(saved(layers.Flatten()), other("keras.utils", "get_file")), safely, "keras.utils.get_file")

    class Own(layers.Layer):
        def call(self, x):
            return x

    refused(saved(lambda x: layers.Flatten()(Own()(x))), safely, "Could not locate class 'Own'")


def test_damaged_networks_are_refused(saved, tmp_path):
    refused(tmp_path / "none.keras", "cannot read", "No such file")
    refused(tmp_path / "none.h5", "must end in .keras")
    path = saved(lambda x: layers.Dense(3)(layers.Flatten()(x)))
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "cannot be loaded safely: ")
    path.unlink()
    os.mkfifo(path)
    refused(path, "cannot read")


def test_sizes_are_compared_before_anything_is_allocated(saved):
    def enlarge(config):
        config["config"]["layers"][-1]["config"]["units"] = 10**9  # 384 GB

    path = saved(lambda x: layers.Dense(3)(layers.Flatten()(x)))
    refused(edited(path, enlarge), "its config.json describes 97,000,000,000 weights, more than it holds")
    keras.Sequential([keras.Input((2,)), layers.Dense(2)])  # Keras allocates none of it later on, either
    refused(edited(path, dict.clear), "cannot be loaded safely")


def test_a_record_that_is_not_the_networks_own_is_refused(digits, tmp_path):
    path, beside = tmp_path / "digits.keras", tmp_path / "digits.json"
    path.write_bytes(digits.read_bytes())
    record = json.loads(digits.with_suffix(".json").read_text())
    strange = [{"sha256": "0" * 64}, {"layer": 3}, {"test_accuracy": "high"}, {"data_set": None}]
    for text in (
        *(json.dumps(record | change) for change in strange),
        "{}",
        "[]",
        "[" * 100_000,
        json.dumps(record)[:99],
    ):
        beside.write_text(text)
        refused(path, f"{beside} does not belong to {path}")
    beside.write_text(json.dumps(record | {"layer": "none"}))
    refused(path, "has no layer 'none', but ")
    beside.write_text(json.dumps(record))
    assert features.load(path).record == record
