"""One HTML file for exploring the latents of runs: Python writes the data into it, its script decodes and draws.

decoder.js computes the decoder from decoder_steps.py's list of steps. No library does: ONNX Runtime Web would add 14 MB
to each page and TensorFlow.js 1.5 MB, Bokeh or Plotly 1 to 4 MB for the plots; none comes with pip, and TensorFlow.js
has only half precision on phones. So the page's Content-Security-Policy can forbid all requests and other scripts.
"""

import base64
import hashlib
import html
import io
import json
import math
import os
import sys
from pathlib import Path
from string import Template
from types import SimpleNamespace

import numpy as np
from contourpy import contour_generator
from PIL import Image

from plotting import comparisons, planes
from plotting.sheets import in_rows
from plotting.style import colours
from plotting.view import View, as_numpy, evenly
from runtime.errors import UserError

FOLDER = Path(__file__).parent
SCRIPTS = ("elements.js", "decoder.js", "chart.js", "panel.js", "page.js")  # concatenated in this order
POINTS = 2000  # test images in the plane, at most
MOST_PIXELS = 6 << 20  # values of all pictures in one sprite; larger pictures are fewer
MOST_LATENTS = 1 << 20  # values of all latents in one array; larger latents are fewer
EXAMPLES = 10  # test images above the panels, of different classes where there are classes
PSEUDO_INPUTS = 500  # at most
DRAWS = 6  # from the posterior of each pseudo-input
SLIDERS = 50  # at most
GRID = 32  # pictures along each axis of the plane where Python decodes them


def explorable(runs, skip=False):
    """The runs that a page can show. Raises UserError for one that it cannot.

    With `skip`, runs that it cannot show are left out with a warning; the error is then only raised if none is left.
    """
    reasons = [refused(run) for run in runs]
    for run, reason in zip(runs, reasons, strict=True):
        if reason and not (skip and "" in reasons):
            raise UserError(f"{run.path} cannot be explored: {reason}")
        if reason:
            print(f"warning: left out: {run.path} cannot be explored: {reason}", file=sys.stderr)
    return [run for run, reason in zip(runs, reasons, strict=True) if not reason]


def refused(run):
    """Why a page cannot show a run; an empty text if it can."""
    if run.config.is_deep:
        return f"the latents of --model {run.config.model} are maps of many layers, which no plane can show"
    if run.config.is_autoregressive:
        return f"--network {run.config.network} samples each picture in {math.prod(run.image_shape[:2])} passes"
    if run.image_shape[2] not in (1, 3):
        return f"its images have {run.image_shape[2]} channels; the page shows images with 1 or 3"
    return ""


def panel(view, label):
    """What the page shows of the run of a View, as a dict for JSON. The page calls the run `label`."""
    from plotting.explorer.decoder_steps import UnsupportedError, decoder_steps

    plane, chosen = Plane(view), points(view)
    rows = view.rows_of(chosen)
    try:
        decoder, grid, reason = decoder_steps(view.model), None, ""
    except UnsupportedError as error:
        decoder, grid, reason = None, decoded_grid(view, plane), str(error)
    return {
        "label": label,
        "facts": facts(view, len(chosen), decoder, grid, reason),
        "images": images(view, chosen),
        "names": plane.names,
        "caption": plane.caption,
        "limits": plane.limits.tolist(),
        "centre": packed(plane.centre),
        "basis": packed(plane.basis),
        "means": packed(view.embedding.mean[rows]),
        "plane": packed(plane.of_images[rows]),
        "contours": contours(view.density) if view.density else [],
        "sliders": sliders(view) if decoder and view.run.latent_dim > 2 else [],
        "pseudo": pseudo_inputs(view, plane, decoder) if view.config.has_pseudo_inputs else None,
        "decoder": decoder and {"steps": decoder.steps, "weights": packed(decoder.weights)},
        "grid": grid,
    }


class Plane:
    """The plane in which the page shows latents z (..., D). Its points are centre + coordinates @ basis.

    With two latent dimensions, it is the latent space. With one, its second coordinate is random and means nothing.
    With more, it is spanned by the first two principal components of the posterior means. `basis` is (2, D). `limits`
    (2, 2) are the lowest and the highest coordinates. `of_images` (N, 2) and `of_components` (K, 2) are the coordinates
    of the posterior means of test images and of pseudo-inputs.
    """

    def __init__(self, view):
        means, dim = view.embedding.mean, view.run.latent_dim
        self.caption, self.names = "", [*view.latent_names, "random height"][:2]
        self.centre, self.basis = np.zeros(dim, np.float32), np.eye(2, dim, dtype=np.float32)
        if dim > 2 and len(means) > 1 and np.ptp(means, axis=0).any():
            from sklearn.decomposition import PCA

            fitted = PCA(2).fit(means)
            self.centre, self.basis = fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32)
            shares = enumerate(100 * fitted.explained_variance_ratio_, 1)
            self.names = [f"principal component {number} ({share:.0f} %)" for number, share in shares]
            self.caption = "principal components of the posterior means, with their shares of the variance"
        self.of_images, self.of_components = self.of(means), self.of(view.components)
        if dim == 1:
            rng = np.random.default_rng(0)
            for coordinates in (self.of_images, self.of_components):
                coordinates[:, 1] = rng.uniform(size=len(coordinates))
        spread = self.of(view.embedding.z) if view.density is None else view.density.held(max(planes.SHARES))
        if dim == 1:
            spread[:, 1] = 0.5
        self.limits = squared(planes.window(np.concatenate([self.of_images, self.of_components, spread])))

    def of(self, z):
        """The coordinates of latents (..., D): (..., 2)."""
        return (z - self.centre) @ self.basis.T


def squared(limits):
    """Limits (2, 2), widened to a square so that both axes have one scale, unless one is three times the other."""
    spans = np.ptp(limits, axis=0)
    if not 1 / 3 < spans[0] / spans[1] < 3:
        return limits
    middle = limits.mean(axis=0)
    return np.stack([middle - spans.max() / 2, middle + spans.max() / 2])


def points(view):
    """Rising indices of the test images in the plane: the examples and a random choice of others: (N,)."""
    fitting = min(MOST_PIXELS // math.prod(view.run.image_shape), MOST_LATENTS // view.run.latent_dim)
    count = min(POINTS, len(view.embedded), max(EXAMPLES, fitting))
    first = examples(view)[:count]
    others = np.setdiff1d(np.random.default_rng(0).permutation(view.embedded), first, assume_unique=True)
    return np.sort(np.concatenate([first, others[: count - len(first)]]))


def examples(view):
    """Indices of at most EXAMPLES test images, one of each class; where there are no classes, evenly spaced ones."""
    return np.sort(view.spread(EXAMPLES)) if view.rows else evenly(view.embedded, EXAMPLES)


def images(view, chosen):
    """The chosen test images as the model sees them, and their classes. "examples" are positions in this choice."""
    from matplotlib.colors import to_hex

    labels, names = view.split.labels, view.class_names
    if labels is None:
        labels, names = np.zeros(len(view.images), int), ("test images",)
    return {
        "name": view.config.source.name,
        "data_set": f"{view.config.source.name}{view.config.likelihood_tag}",
        "sprite": sprite(view.images[chosen]),
        "shape": list(view.run.image_shape),
        "index": chosen.tolist(),
        "labelled": view.split.labels is not None,
        "labels": labels[chosen].tolist(),
        "classes": list(names),
        "colours": [to_hex(colour) for colour in colours(len(names))],
        "examples": np.searchsorted(chosen, examples(view)).tolist(),
    }


def contours(density):
    """Contours of the prior's Density: for each of planes.SHARES, the lines around this share of its mass."""
    generator = contour_generator(*density)
    levels = planes.mass_levels(density.log_p)
    digits = max(0, 3 - math.floor(math.log10(np.ptp(density.limits, axis=0).max())))  # a thousandth of the plane
    return [
        {"share": share, "lines": [line.ravel().round(digits).tolist() for line in generator.lines(level)]}
        for share, level in zip(planes.SHARES, levels, strict=True)
    ]


def sliders(view):
    """A slider for each latent dimension, by falling variance of its posterior mean; its range is that of q(z|x)."""
    order = np.argsort(-view.embedding.mean.var(axis=0), kind="stable")[:SLIDERS]
    names, (low, high) = view.latent_names, planes.window(view.embedding.z, margin=0)
    return [{"at": int(k), "name": names[k], "low": float(low[k]), "high": float(high[k])} for k in order]


def pseudo_inputs(view, plane, decoder):
    """Pseudo-inputs, the mean of and DRAWS from each one's posterior, and without a decoder the decoded means."""
    inputs = as_numpy(view.model.top_prior.pseudo_inputs)
    fitting = MOST_LATENTS // ((DRAWS + 1) * view.run.latent_dim)
    count = max(1, min(PSEUDO_INPUTS, fitting, MOST_PIXELS // inputs[0].size))
    chosen = evenly(range(len(inputs)), count)
    draws = as_numpy(view.model.posterior(inputs[chosen]).sample(DRAWS, view.noise())).swapaxes(0, 1)  # (K, DRAWS, D)
    return {
        "sprite": sprite(inputs[chosen]),
        "index": chosen.tolist(),
        "total": len(inputs),
        "means": packed(view.components[chosen]),
        "plane": packed(plane.of_components[chosen]),
        "draws": packed(draws),
        "draws_plane": packed(plane.of(draws)),
        "pictures": None if decoder else sprite(view.decoded(view.components[chosen])),
    }


def decoded_grid(view, plane):
    """Pictures decoded at `side` x `side` points of the plane, row by row from the lowest."""
    side = max(2, min(GRID, math.isqrt(MOST_PIXELS // math.prod(view.run.image_shape))))
    x, y = np.linspace(*plane.limits, side).T
    coordinates = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)
    return {"side": side, "sprite": sprite(view.decoded(plane.centre + coordinates @ plane.basis))}


def facts(view, count, decoder, grid, reason):
    """Sentences on what the page shows of a run."""
    sentences = [f"The plane shows {count:,} of {len(view.images):,} test images at their posterior means."]
    if not decoder:
        decoded = f"{grid['side']} x {grid['side']} decoded ones"
        return [*sentences, f"Pictures are interpolated between {decoded}, because {reason}."]
    number = decoder.multiplications
    sentences.append(f"The run's decoder computes each picture live in this page, in {number:,} multiplications.")
    if view.config.precision != "float32":
        precision = view.config.precision.removeprefix("mixed_")
        sentences.append(f"Hidden layers are computed in float32 here, and in {precision} in the run.")
    if (dim := view.run.latent_dim) > SLIDERS:
        sentences.append(f"Sliders are shown for the {SLIDERS} of {dim} latents whose posterior means vary most.")
    return sentences


def packed(values):
    """An array as base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def sprite(pictures):
    """Pictures (N, H, W, 1 or 3) in [0, 1] as one PNG, and what the page needs to cut them out again."""
    count, height, width, channels = pictures.shape
    columns = math.isqrt(count - 1) + 1
    sheet = in_rows(pictures, columns).swapaxes(1, 2).reshape(-1, columns * width, channels)
    sheet = np.rint(255 * np.clip(np.nan_to_num(sheet), 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(buffer, "PNG", optimize=True)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return SimpleNamespace(url=url, count=count, columns=columns, height=height, width=width)  # no dict, see `page`


def page(panels, title):
    """The bytes of the HTML file. Its Content-Security-Policy allows this script and this style only."""
    sprites = {}

    def key_of(sprite):  # runs on the same images share it
        key = hashlib.sha256(sprite.url.encode()).hexdigest()[:16]
        sprites[key] = vars(sprite)
        return key

    panels = json.loads(json.dumps(panels, default=key_of, allow_nan=False))
    data = json.dumps({"sprites": sprites, "panels": panels})
    for letter in "<>&":  # else a name could end the <script> that holds the data
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    script, style = "".join((FOLDER / name).read_text() for name in SCRIPTS), (FOLDER / "page.css").read_text()
    values = {"title": html.escape(title), "data": data, "script": script, "style": style}
    values |= {"script_hash": checksum(script), "style_hash": checksum(style)}
    return Template((FOLDER / "page.html").read_text()).substitute(values).encode()


def checksum(text):
    """The name of a script or style in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def write_explorer(runs, output):
    """Writes the page of these runs, into the figures/ of a single one or else beside the runs."""
    first, alone = runs[0], len(runs) == 1
    folder = first.path if alone else Path(os.path.normpath(first.path / os.pardir))
    name = first.config.training_id if alone else "_".join(sorted({one.config.source.name for one in runs}))
    labels = [name] if alone else comparisons.names_of(runs)
    title = f"Latents of {name if alone else f'{len(runs)} runs'}"
    panels = [panel(View(runs.pop(0), "pca"), label) for label in labels]  # one model at a time is in memory
    output.write(folder / "figures", f"{name}_explore.html", lambda: page(panels, title))
