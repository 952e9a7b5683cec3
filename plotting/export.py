"""Samples, reconstructions, embeddings and decoders of runs as files for use elsewhere."""

import importlib.util
import io
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

from runtime.errors import UserError

REQUIREMENTS = "requirements/export.txt"


def check(kind):
    """Raises UserError where files of this kind cannot be written here; the backend is settled. None is always well."""
    if kind != "onnx":
        return
    if missing := [name for name in ("tf2onnx", "onnx") if importlib.util.find_spec(name) is None]:
        needs = f"--export onnx needs {' and '.join(missing)}"
        raise UserError(f"{needs}, not installed here: pip install -r {REQUIREMENTS}")
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        raise UserError("--export onnx goes by TensorFlow; add --backend tensorflow, whatever the run was trained on")


def to_npz(view, output):
    """Writes <id>_export.npz of a plot.View: no pickle, float32 but for labels and names.

    `samples` from the prior (S, H, W, C); of the test images `index` (N,), one of each class before the second of any,
    the `originals` as the model sees them and `reconstructions` (N, H, W, C); of all test images a `z` of q(z|x), its
    `mean` and `logvar` (M, D); and where there are classes `label` (M,) and `class_names`.
    """
    index, originals, reconstructions = pairs(view)
    arrays = {"samples": view.samples, "index": index, "originals": originals, "reconstructions": reconstructions}
    arrays |= view.embedding._asdict()
    if view.split.labels is not None:
        arrays |= {"label": view.split.labels[: len(view.embedding.z)], "class_names": np.array(view.class_names)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    output.write(folder_of(view), f"{view.config.training_id}_export.npz", buffer.getvalue)


def to_png(view, output):
    """Writes each sample, original and reconstruction of a plot.View as a PNG of its own pixels, 8 bits a channel.

    They are <id>_sample<number>.png, and <id>_original<index>.png and <id>_reconstruction<index>.png of a test image.
    """
    index, originals, reconstructions = pairs(view)
    kinds = {"sample": (range(len(view.samples)), view.samples)}
    kinds |= {"original": (index, originals), "reconstruction": (index, reconstructions)}
    for kind, (numbers, images) in kinds.items():
        for number, image in zip(numbers, images, strict=True):
            name = f"{view.config.training_id}_{kind}{number:05d}.png"
            output.write(folder_of(view), name, lambda image=image: png(image))


def to_onnx(view, output):
    """Writes <id>_decoder.onnx of a plot.View: latents z (N, D) float32 to means of p(x|z), (N, H, W, C) float32.

    Raises UserError for networks that draw pixel by pixel, which have no such mean.
    """
    if view.config.is_autoregressive:
        raise UserError(f"{view.run.path} draws pixel by pixel; --export onnx is for decoders that run once an image")
    output.write(
        folder_of(view), f"{view.config.training_id}_decoder.onnx", lambda: onnx(view.model, view.run.latent_dim)
    )


KINDS = {"npz": to_npz, "png": to_png, "onnx": to_onnx}


def folder_of(view):
    """Where a run's exports go unless --out is given."""
    return view.run.path / "export"


def pairs(view):
    """Indices (N,) of as many test images as there are samples at most, these, and their reconstructions."""
    index = view.spread(len(view.samples))
    originals = view.images[index]
    return index, originals, view.reconstructed(originals)


def png(image):
    """The bytes of a PNG file of an image (H, W, C) in [0, 1], with one channel or three.

    Raises UserError for other numbers of channels.
    """
    from PIL import Image

    if image.shape[-1] not in (1, 3):
        raise UserError(
            f"--export png is for images of one or three channels, and these have {image.shape[-1]}; try npz"
        )
    buffer = io.BytesIO()
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if image.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def onnx(model, latent_dim):
    """The bytes of an ONNX file of a LatentModel's decoder, by Keras' own export."""
    import keras

    class Decoder(keras.Model):
        """The decoder as a model of its own, so that Keras finds what it needs."""

        def __init__(self):
            super().__init__(name="decoder")
            self.latent_model, self.noise = model, keras.random.SeedGenerator(0)  # which means do not use

        def call(self, z):
            """Means of p(x|z): (N, D) -> (N, H, W, C)."""
            return self.latent_model.decode(z, self.noise)

    decoder = Decoder()
    decoder(np.zeros((1, latent_dim), np.float32))
    signature = [keras.InputSpec(shape=(None, latent_dim), dtype="float32", name="z")]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Keras' own, about NumPy
        path = Path(folder, "decoder.onnx")
        decoder.export(path, format="onnx", input_signature=signature, verbose=False)
        return path.read_bytes()
