"""One HTML page in which the latents of runs are explored: arrays in, a file out that needs nothing else.

The decoder runs in the page as explorer/decoder.js computes it, from models/program.py's list of steps. No library does
that here, for these reasons. ONNX Runtime Web is 14 MB of WebAssembly and TensorFlow.js 1.5 MB of script, in each page;
neither comes with pip, so either they or npm would have to be on every user's machine, beside a converter that knows
Keras 3. On a phone's GPU TensorFlow.js has half floats, too few for pictures that are the model's. What they would run
is two kinds of steps, in a hundred lines; and with nothing but these, the page can forbid itself every request, and
all scripts but its own, in its Content-Security-Policy. Plots are drawn on a canvas, as Bokeh and Plotly
would add 1 to 4 MB and could not move a picture with the pointer any faster.
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

import numpy as np

from plotting import comparisons, planes, style
from plotting.view import View
from runtime.errors import UserError

SOURCES = Path(__file__).parent
POINTS = 2000  # test images in the plane, at most
MOST_PIXELS = 6 << 20  # values of all their pictures together, at most, else fewer are shown
MOST_LATENTS = 1 << 20  # the same of their latents
EXAMPLES = 10  # test images to begin with, one of each class where there are so many
PSEUDO_INPUTS = 500
DRAWS = 6  # of the posterior of each
SLIDERS = 50
MULTIPLICATIONS = 100_000_000  # of a picture, up to which a page computes it: one or two tenths of a second
WEIGHTS = 4_000_000  # that a page carries, at most: 16 MB before they are written as text
GRID = 32  # pictures along each axis of the plane, where they are computed beforehand


def explorable(runs, args):
    """Those of these runs that can be explored: all of them or, of a grid search, those that can, with a warning.

    Raises UserError where one that was named cannot be, or where the flags do not go together.
    """
    if args.projection != "pca":
        raise UserError(f"--projection {args.projection} has no way back to latents; leave it away with --explore")
    for name in ("estimates", "figures", "report", "export"):
        if getattr(args, name):
            raise UserError(f"--{name} does not go with --explore, which writes a page of its own")
    reasons = {run.path: refused(run) for run in runs}
    possible = [run for run in runs if not reasons[run.path]]
    for path, reason in reasons.items():
        if reason and not (args.gs_key and possible):
            raise UserError(f"{path} cannot be explored: {reason}")
        if reason:
            print(f"warning: left out: {path} cannot be explored: {reason}", file=sys.stderr)
    return possible


def refused(run):
    """The end of a sentence that says why a run cannot be explored; none where it can."""
    if run.config.is_deep:
        return f"the latents of --model {run.config.model} are maps of many layers, with no plane to move in"
    if run.config.is_autoregressive:
        passes = math.prod(run.image_shape[:2])
        return f"--network {run.config.network} draws each picture in {passes} passes, and another one each time"
    if run.image_shape[2] not in (1, 3):
        return f"its images have {run.image_shape[2]} channels, and pictures have 1 or 3"
    return ""


# ---------------------------------------------------------------------------------------------- one run


def panel(view, label):
    """What the page knows of a run, from a plot.View: a dict for JSON. `label` is what the run is called."""
    plane = Plane(view)
    decoder, reason = exported(view)
    grid = None if decoder else decoded_grid(view, plane)
    means = view.embedding.mean
    chosen = points(view)
    return {
        "label": label,
        "facts": facts(view, len(chosen), decoder, grid, reason),
        "images": images(view, chosen),
        "names": plane.names,
        "caption": plane.caption,
        "limits": plane.limits.tolist(),
        "centre": packed(plane.centre),
        "basis": packed(plane.basis),
        "means": packed(means[chosen]),
        "plane": packed(plane.of_images[chosen]),
        "contours": contours(view.density),
        "sliders": sliders(view) if decoder and view.run.latent_dim > 2 else [],
        "pseudo": pseudo_inputs(view, plane, decoder) if view.config.has_pseudo_inputs else None,
        "decoder": decoder,
        "grid": grid,
    }


class Plane:
    """The plane that latents z (..., D) are shown in: z = centre + coordinates @ basis, and what is left away.

    For two dimensions the latents themselves; for one, a line with a height that means nothing; else the two principal
    components of the posterior means. `basis` is (2, D), with orthonormal rows, and `limits` (2, 2), by axes.
    """

    def __init__(self, view):
        means, dim = view.embedding.mean, view.run.latent_dim
        self.caption, self.names = "", [names_of(view)[0], "no meaning"] if dim == 1 else names_of(view)[:2]
        self.centre, self.basis = np.zeros(dim, np.float32), np.eye(2, dim, dtype=np.float32)
        if dim > 2 and len(means) > 1 and np.ptp(means, axis=0).any():
            self._find_components(means)
        self.of_images = self.of(means)
        self.of_components = self.of(view.components)
        if dim == 1:
            noise = np.random.default_rng(0)
            self.of_images[:, 1], self.of_components[:, 1] = (
                noise.uniform(size=len(part)) for part in (means, view.components)
            )
        held = [] if view.density is None else [view.density.held(max(planes.SHARES))]
        self.limits = squared(planes.window(np.concatenate([self.of_images, self.of_components, *held])))

    def _find_components(self, means):
        from sklearn.decomposition import PCA

        fitted = PCA(2).fit(means)
        self.centre, self.basis = fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32)
        shares = 100 * fitted.explained_variance_ratio_
        self.names = [f"principal component {number} ({share:.0f} %)" for number, share in enumerate(shares, 1)]
        self.caption = "principal components of the posterior means, with their shares of the variance"

    def of(self, z):
        """The coordinates of latents (..., D): (..., 2)."""
        return (z - self.centre) @ self.basis.T


def squared(limits):
    """Limits (2, 2), by axes, true to scale in a square; as they are where that would leave a strip."""
    spans = np.ptp(limits, axis=0)
    if not 1 / 3 < spans[0] / spans[1] < 3:
        return limits
    middle = limits.mean(axis=0)
    return np.stack([middle - spans.max() / 2, middle + spans.max() / 2])


def names_of(view):
    """A name for each latent dimension, as z[0], or z2[0] and z1[0] where there are layers, the top one first."""
    sizes = view.model.sizes
    if len(sizes) == 1:
        return [f"z[{index}]" for index in range(sizes[0])]
    layers = enumerate(sizes)
    return [f"z{len(sizes) - above}" + f"[{index}]" * (size > 1) for above, size in layers for index in range(size)]


def points(view):
    """Indices of the test images to show, rising: the examples, then others by chance, always the same: (N,)."""
    total = len(view.embedding.mean)
    fitting = min(MOST_PIXELS // math.prod(view.run.image_shape), MOST_LATENTS // view.run.latent_dim)
    count = min(POINTS, total, max(EXAMPLES, fitting))
    first = examples(view)[:count]
    others = np.setdiff1d(np.random.default_rng(0).permutation(total), first, assume_unique=True)
    return np.sort(np.concatenate([first, others[: count - len(first)]]))


def examples(view):
    """Indices of EXAMPLES test images at most, one of each class or, where there are none, evenly chosen."""
    if view.rows:
        return np.sort(view.spread(EXAMPLES))
    total = len(view.embedding.mean)
    return np.linspace(0, total - 1, min(EXAMPLES, total)).round().astype(int)


def images(view, chosen):
    """The chosen test images as the model sees them, with their classes; "examples" are places among them."""
    labels = None if view.split.labels is None else view.split.labels[chosen]
    names = view.class_names if labels is not None else ("test images",)
    return {
        "name": view.config.source.name,
        "data_set": f"{view.config.source.name}{view.config.likelihood_tag}",
        "sprite": sprite(view.images[chosen]),
        "shape": list(view.run.image_shape),
        "index": chosen.tolist(),
        "total": len(view.images),
        "labelled": labels is not None,
        "labels": [0] * len(chosen) if labels is None else labels.tolist(),
        "classes": list(names),
        "colours": [hexadecimal(colour) for colour in style.colours(len(names))],
        "examples": np.searchsorted(chosen, examples(view)).tolist(),
    }


def hexadecimal(colour):
    """A colour as #rrggbb."""
    from matplotlib.colors import to_hex

    return to_hex(colour)


def contours(density):
    """Lines around figures.SHARES of the prior's mass: a list of shares, each with its lines as x, y, x, y, ..."""
    if density is None:
        return []
    from contourpy import contour_generator

    lines = contour_generator(*density)
    levels = planes.mass_levels(density.log_p)
    digits = max(0, 3 - math.floor(math.log10(np.ptp(density.limits, axis=0).max())))  # a thousandth of the plane
    return [
        {"share": share, "lines": [line.ravel().round(digits).tolist() for line in lines.lines(level)]}
        for share, level in zip(planes.SHARES, levels, strict=True)
    ]


def sliders(view):
    """Those of the dimensions whose posterior means vary most, these first, over the range of draws of q(z|x)."""
    order = np.argsort(-view.embedding.mean.var(axis=0), kind="stable")[:SLIDERS]
    names, low, high = names_of(view), view.embedding.z.min(axis=0), view.embedding.z.max(axis=0)
    return [{"at": int(k), "name": names[k], "low": float(low[k]), "high": float(high[k])} for k in order]


def pseudo_inputs(view, plane, decoder):
    """Pseudo-inputs with means and DRAWS of their posteriors, and without a decoder the pictures of these means."""
    from keras import ops

    inputs = ops.convert_to_numpy(view.model.top_prior.pseudo_inputs)
    fitting = MOST_LATENTS // ((DRAWS + 1) * view.run.latent_dim)
    count = max(1, min(PSEUDO_INPUTS, len(inputs), fitting, MOST_PIXELS // inputs[0].size))
    chosen = np.linspace(0, len(inputs) - 1, count).round().astype(int)
    drawn = view.model.posterior(ops.convert_to_tensor(inputs[chosen])).sample(DRAWS, view.noise())
    draws = ops.convert_to_numpy(drawn).swapaxes(0, 1)  # (K, DRAWS, D)
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


def exported(view):
    """The decoder for the page, and no reason; or None, and why there is none, as the end of a sentence."""
    from plotting.explorer.program import NotListedError, program

    try:
        made = program(view.model)
    except NotListedError as error:
        return None, str(error)
    if made.multiplications > MULTIPLICATIONS:
        return None, f"it takes {millions(made.multiplications)} multiplications a picture"
    if len(made.weights) > WEIGHTS:
        return None, f"it has {millions(len(made.weights))} weights"
    return {"steps": made.steps, "weights": packed(made.weights), "multiplications": made.multiplications}, ""


def decoded_grid(view, plane):
    """Pictures of the plane's points on a grid of `side` x `side`, rows from the lowest upward."""
    side = max(2, min(GRID, math.isqrt(MOST_PIXELS // math.prod(view.run.image_shape))))
    x, y = np.linspace(*plane.limits, side).T
    coordinates = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)
    return {"side": side, "sprite": sprite(view.decoded(plane.centre + coordinates @ plane.basis))}


def facts(view, count, decoder, grid, reason):
    """Sentences about a run and what is shown of it."""
    said, dim = [f"{count:,} of {len(view.images):,} test images at the means of q(z|x)."], view.run.latent_dim
    if not decoder:
        side, why = grid["side"], f"the decoder is not made for a page: {reason}"
        return [*said, f"The picture is interpolated between {side} x {side} decoded beforehand, as {why}."]
    said.append(
        "The picture is decoded live, in this page, by the decoder of the run "
        f"({millions(decoder['multiplications'])} multiplications)."
    )
    if view.config.precision != "float32":
        said.append(f"Hidden layers are float32 here, in the run {view.config.precision.removeprefix('mixed_')}.")
    if dim > SLIDERS:
        said.append(f"Sliders are those of the {SLIDERS} of {dim} latents whose means vary most.")
    return said


def millions(number):
    """A number in words, as 1.6 million or 12 thousand."""
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{math.ceil(number / 1000)} thousand"


# ---------------------------------------------------------------------------------------------- what is in the file


def packed(values):
    """An array as base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def sprite(pictures):
    """Pictures (N, H, W, C) in [0, 1], C 1 or 3, as one PNG, `columns` in a row: its data URL and what reads it."""
    from PIL import Image

    count, height, width, channels = pictures.shape
    columns = math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = np.rint(255 * np.clip(pictures, 0, 1))
    tiles = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    whole = tiles.reshape(rows * height, columns * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(whole[..., 0] if channels == 1 else whole).save(buffer, "PNG", optimize=True)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"url": url, "count": count, "columns": columns, "height": height, "width": width}


def page(panels, title):
    """The bytes of the HTML file with these panels, which names every script and style that may run in it."""
    style, script = ("".join((SOURCES / name).read_text() for name in names) for names in (STYLES, SCRIPTS))
    shared, panels = without_copies(panels)
    data = json.dumps({"title": title, "sprites": shared, "panels": panels}, allow_nan=False)
    template = Template((SOURCES / "page.html").read_text())
    policy = (
        f"default-src 'none'; script-src '{checksum(script)}'; style-src '{checksum(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    for one in "<>&":  # so that neither </script> nor a comment can stand in it
        data = data.replace(one, f"\\u{ord(one):04x}")
    values = {"policy": policy, "title": html.escape(title), "style": style, "data": data, "script": script}
    return template.substitute(values).encode()


STYLES, SCRIPTS = ("page.css",), ("decoder.js", "page.js")


def checksum(text):
    """What a Content-Security-Policy calls a script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def without_copies(panels):
    """Sprites by a key, as runs on the same images share them, and the panels with these keys in their places."""
    shared = {}

    def kept(value):
        if isinstance(value, dict) and "url" in value:
            key = hashlib.sha256(value["url"].encode()).hexdigest()[:16]
            shared[key] = value
            return key
        if isinstance(value, dict):
            return {name: kept(one) for name, one in value.items()}
        return value

    return shared, [kept(one) for one in panels]


def write_explorer(runs, output):
    """Writes the page in which these runs are explored, beside the figures of one or of their group; returns 0."""
    first, names = runs[0], sorted({one.config.source.name for one in runs})
    alone = len(runs) == 1
    folder = first.path / "figures" if alone else Path(os.path.normpath(first.path / os.pardir), "figures")
    name = first.config.training_id if alone else "_".join(names)
    labels = [first.config.training_id] if alone else comparisons.differences(runs)
    runs.reverse()
    panels = [panel(View(runs.pop(), "pca"), label) for label in labels]  # popped, as above
    title = f"Latents of {name if alone else f'{len(labels)} runs'}"
    output.write(folder, f"{name}_explore.html", lambda: page(panels, title))
    return 0
