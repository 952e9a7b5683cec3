"""export.py: what is written for use elsewhere is what the model says."""

import importlib.util
import os

import numpy as np
import pytest
from conftest import slow_on_jax
from made import copies, numpy

import experiment
import plot
from experiment.config import UserError
from plotting import export

pytestmark = pytest.mark.slow

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("tf2onnx", "onnx", "onnxruntime"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run."""
    return experiment.load(copies(tmp_path_factory)["hvae3"])


@slow_on_jax
@pytest.mark.keras
def test_an_npz_has_samples_reconstructions_and_embeddings(run, capsys):
    assert plot.main([str(run.path), "--export", "npz"]) == 0
    (written,) = capsys.readouterr().out.splitlines()
    assert written == str(run.path / "export" / f"{run.name}_export.npz") and not (run.path / "figures").exists()
    with np.load(written) as file:  # which refuses pickles
        arrays = dict(file)
    test, model = run.images("test"), run.model
    np.testing.assert_allclose(arrays["samples"], numpy(model.sample(100, run.config.seed)), atol=1e-5)
    np.testing.assert_array_equal(arrays["originals"], test[arrays["index"]])
    np.testing.assert_allclose(arrays["reconstructions"], numpy(model.reconstruct(test[arrays["index"]])), atol=1e-5)
    np.testing.assert_allclose(arrays["mean"], numpy(model.embed(test)), rtol=1e-4, atol=1e-5)
    assert arrays["z"].shape == arrays["logvar"].shape == (300, 3)
    np.testing.assert_array_equal(arrays["label"], run.dataset.split("test").labels)
    assert arrays["class_names"].tolist() == list(run.dataset.class_names)


@pytest.mark.skipif(not HAS_ONNX, reason="needs pip install -r requirements/export.txt")
@pytest.mark.skipif(os.environ["KERAS_BACKEND"] != "tensorflow", reason="ONNX goes by TensorFlow")
def test_the_onnx_decoder_says_what_the_model_says(run, tmp_path, capsys):
    import onnxruntime

    assert plot.main([str(run.path), "--export", "onnx", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert capsys.readouterr().out.strip() == str(path) and path.name == f"{run.name}_decoder.onnx"
    session = onnxruntime.InferenceSession(path)
    for count in (1, 7):
        z = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
        (images,) = session.run(None, {"z": z})
        assert images.shape == (count, 8, 8, 1) and images.dtype == np.float32
        np.testing.assert_allclose(images, numpy(run.model.decode(z)), atol=1e-5)


@pytest.mark.skipif(HAS_ONNX, reason="the packages are installed here")
def test_without_its_packages_onnx_says_what_to_install(run, capsys):
    assert plot.main([str(run.path), "--export", "onnx"]) == 2
    assert "pip install -r requirements/export.txt" in capsys.readouterr().err


def test_on_jax_onnx_asks_for_tensorflow(monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UserError, match="add --backend tensorflow"):
        export.check("onnx")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    export.check("onnx")
    export.check(None)
