"""Samples, reconstructions, embeddings and decoders of runs, as files for other programs."""

import importlib.util
import io
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

import experiment
from plotting.view import View
from runtime.errors import UserError


def check(kind):
    """Raises UserError if files of this kind, or None, cannot be written; the backend must be settled."""
    if kind != "onnx":
        return
    if missing := [name for name in ("tf2onnx", "onnx") if importlib.util.find_spec(name) is None]:
        raise UserError(f"--export onnx needs {' and '.join(missing)}: pip install -r requirements/export.txt")
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        raise UserError("--export onnx needs TensorFlow: add --backend tensorflow, whatever the run was trained on")


def to_npz(view, output):
    """Writes <id>_export.npz of a View, in float32 but for labels and names, without pickle.

    It holds `samples` of the model (S, H, W, C); of some test images the `index` (N,), the `originals` as the model
    sees them and the `reconstructions` (N, H, W, C); of all test images, or with very many latents of those `embedded`
    (M,), a sample `z` of q(z|x), its `mean` and its `logvar` (M, D); if there are classes, also `label` (M,) and
    `class_names`.
    """
    index = view.spread(len(view.samples))
    originals = view.images[index]
    arrays = {"samples": view.samples, "index": index, "originals": originals}
    arrays |= {"reconstructions": view.reconstructed(originals), "embedded": view.embedded}
    arrays |= view.embedding._asdict()
    if view.labels is not None:
        arrays |= {"label": view.labels, "class_names": np.array(view.class_names)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    output.write(view.run.path / "export", f"{view.config.training_id}_export.npz", buffer.getvalue)


def to_onnx(view, output):
    """Writes <id>_decoder.onnx of a View: latents z (N, D) to the mean of p(x|z), (N, H, W, C), both float32.

    Raises UserError for networks that draw pixel by pixel, which have no such mean.
    """
    import keras

    class Decoder(keras.Model):  # which is what Keras exports
        def __init__(self):
            super().__init__(name="decoder", dtype=view.model.dtype_policy)
            self.latent_model, self.noise = view.model, keras.random.SeedGenerator(0)  # not used to decode to means

        def call(self, z):
            return self.latent_model.decode(z, self.noise)

    if view.config.is_autoregressive:
        raise UserError(f"{view.run.path} draws pixel by pixel; --export onnx needs a decoder that runs once per image")
    decoder = Decoder()
    decoder(np.zeros((1, view.run.latent_dim), np.float32))
    signature = [keras.InputSpec(shape=(None, view.run.latent_dim), dtype="float32", name="z")]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised inside Keras, about NumPy
        path = Path(folder, "decoder.onnx")
        decoder.export(path, format="onnx", input_signature=signature, verbose=False)
        output.write(view.run.path / "export", f"{view.config.training_id}_decoder.onnx", path.read_bytes)


KINDS = {"npz": to_npz, "onnx": to_onnx}


def write(runs, output, kind):
    """Writes a file of this kind, one of KINDS, for each of these Runs, by default into export/ of the run."""
    for run in runs:
        fresh = experiment.load(run.path, run.data_dir)  # so that one model at a time is in memory
        KINDS[kind](View(fresh, "pca"), output)
