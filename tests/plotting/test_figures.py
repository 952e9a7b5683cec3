"""figures.py alone, then plot.py on tiny runs: what is drawn, where it lies, and that it is what the model says."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import first_on_both
from linear_models import IMAGES, NOISE, WEIGHTS, Linear, standard
from threadpoolctl import threadpool_limits

import experiment
import models
import plot
from data import Split
from experiment.config import UserError
from experiment.run import Evaluation
from plotting import comparisons, curves, estimates, planes, posteriors, projections, run_figures, scores, sheets, style
from plotting.curves import overlay
from plotting.view import View, examples, picked
from training import fit

ROOT = Path(__file__).parents[2]
HISTORY = {name: np.linspace(-9.0, -5.0, 4) for name in ("val_elbo", "train_elbo", "train_rate", "val_rate")} | {
    "epoch": np.arange(1.0, 5),
    "train_distortion": np.linspace(9, 5, 4),
    "val_distortion": np.linspace(9, 5, 4),
}
KINDS = {"standard2": ("vae", "standard", 2), "vamp2": ("vae", "vamp", 2), "hvae3": ("hvae", "vamp", 3)}


def modules_after(code):
    """The modules that are imported when `code` has run in a fresh interpreter."""
    lines = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def pixels(png):
    """The RGB values in [0, 1] of a PNG file's bytes: (h, w, 3)."""
    from matplotlib.image import imread

    return imread(io.BytesIO(png))[..., :3]


def texts(labels):
    """The words of matplotlib's text objects."""
    return [label.get_text() for label in labels]


def noise(*shape):
    """Uniform float32 noise of this shape, always the same."""
    return np.random.default_rng(0).random(shape, np.float32)


# ---------------------------------------------------------------------------------------------- figures.py


def test_neither_keras_nor_matplotlib_is_imported_before_it_is_needed():
    assert not modules_after("import plot") & {"keras", "matplotlib", "sklearn", "tensorflow", "jax"}
    drawn = modules_after(
        "import numpy; from plotting import sheets, style; style.rendered(sheets.sheet(numpy.zeros((1, 2, 4, 4, 1))))"
    )
    assert "matplotlib" in drawn and not drawn & {"keras", "matplotlib.pyplot", "experiment"}


def test_tiles_lie_in_order_with_white_between_and_white_for_what_is_missing():
    grid = noise(4, 3, 5, 6, 3) / 2
    grid[3, 2] = np.nan
    picture, top, left = sheets.tiled(grid, row_breaks=(2,))
    assert picture.shape == (4 * 5 + 2 * sheets.GAP + sheets.BREAK, 3 * 6 + 2 * sheets.GAP, 3)
    for row in range(4):
        for column in range(3):
            tile = picture[top[row] : top[row] + 5, left[column] : left[column] + 6]
            np.testing.assert_array_equal(tile, np.nan_to_num(grid[row, column], nan=1))
    assert (picture < 0.6).all(axis=-1).sum() == 11 * 5 * 6


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 20, 1), (32, 32, 3)])
def test_a_sheet_is_one_array_whose_pixels_are_whole_pixels_of_the_png(monkeypatch, shape):
    monkeypatch.setattr(sheets, "SHEET_PIXELS", (300, 400))
    grid = noise(2, 3, *shape)
    figure = sheets.sheet(grid)
    assert len(figure.axes) == 1 and len(figure.axes[0].images) == 1
    picture = sheets.tiled(sheets.enlarged(grid))[0]
    assert 200 < picture.shape[1] <= 300 + 2 * sheets.GAP and picture.shape[0] <= 400 + sheets.GAP
    shown = pixels(style.rendered(figure))
    border = (np.array(shown.shape[:2]) - picture.shape[:2]) // 2
    assert (border >= 0).all() and (border < 20).all()
    y, x = border
    inside = shown[y : y + len(picture), x : x + picture.shape[1]]
    np.testing.assert_allclose(inside, picture + np.zeros(3), atol=2 / 255)


def test_a_crowded_sheet_is_not_shrunk():
    assert sheets.enlarged(noise(2, 50, 32, 32, 1)).shape == (2, 50, 32, 32, 1)


def test_rows_are_filled_up_and_alternate():
    images = noise(5, 4, 4, 1)
    rows = sheets.in_rows(images, 3)
    assert rows.shape == (2, 3, 4, 4, 1) and np.isnan(rows[1, 2]).all()
    np.testing.assert_array_equal(rows.reshape(6, 4, 4, 1)[:5], images)
    both = sheets.alternating(rows, -rows)
    np.testing.assert_array_equal(both[0::2], rows)
    np.testing.assert_array_equal(both[1::2], -rows)


def test_names_stand_beside_their_rows_and_columns():
    figure = sheets.sheet(noise(4, 3, 8, 8, 1))
    axes = figure.axes[0]
    rows, columns = axes.get_yticks(), axes.get_xticks()
    sheets.name_rows(figure, ("a", "b"), "class")
    sheets.name_columns(figure, "xyz", "z[0]")
    assert texts(axes.get_yticklabels()) == ["a", "b"] and texts(axes.get_xticklabels()) == ["x", "y", "z"]
    np.testing.assert_allclose(axes.get_yticks(), [rows[:2].mean(), rows[2:].mean()])
    np.testing.assert_allclose(axes.get_xticks(), columns)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "class")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([-3.0, -1, 0, 1.961], ["", "-1.00", "", "1.96"]),
        ([-50.0, 1, 7, 9], ["", "1.0", "", "9.0"]),
        ([0.031, 0.0316, 0.04, 0.0507], ["", "0.0316", "", "0.0507"]),
        ([0.0, 0, 0, 0], ["", "0.000000", "", "0.000000"]),
    ],
)
def test_ticks_have_the_decimals_that_tell_them_apart(values, words):
    assert sheets.every_other(values) == [word.replace("-", "\N{MINUS SIGN}") for word in words]


def test_contours_hold_the_stated_mass():
    line = np.linspace(-6, 6, 301)
    log_p = -0.5 * (line**2 + line[:, None] ** 2) - np.log(2 * np.pi)
    expected = [np.log(1 - share) - np.log(2 * np.pi) for share in (0.5, 0.8, 0.95)]  # r^2 = -2 log(1 - share)
    np.testing.assert_allclose(planes.mass_levels(log_p), expected, atol=0.02)


def test_embedding_shows_every_point_in_its_colour_and_in_mixed_order():
    points, labels = noise(60, 2), np.repeat([0, 1, 2], 20)
    line = np.linspace(-1, 2, 30)
    density = planes.Density(line, 2 * line, -np.square(line) - np.square(line[:, None]))
    names = ("cat", "dog", "eel")
    axes = planes.embedding(points, labels, names, ("z[0]", "z[1]"), "caption", density, noise(7, 2)).axes[0]
    scatter, contours, components = axes.collections
    shown, palette = np.asarray(scatter.get_offsets()), scatter.get_facecolors()
    colour_of = {tuple(point): tuple(colour) for point, colour in zip(shown, palette, strict=True)}
    assert len(colour_of) == 60 and len(set(colour_of.values())) == 3
    for name in range(3):
        assert len({colour_of[tuple(point)] for point in points[labels == name]}) == 1
    assert not (shown == points).all()
    assert len(contours.get_paths()) == len(planes.SHARES) and len(components.get_offsets()) == 7
    assert texts(axes.get_legend().get_texts()) == [*names, "prior (50, 80, 95 %)", "7 pseudo-inputs"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("z[0]", "z[1]", "caption")
    assert axes.get_xlim() == (-1, 2) and axes.get_ylim() == (-2, 4)


def test_a_landscape_has_ellipses_and_pictures_that_do_not_overlap():
    line = np.linspace(-2, 2, 30)
    density = planes.Density(line, 2 * line, -np.square(line) - np.square(line[:, None]))
    places = np.array([[0.0, 0], [0.01, 0.01], [1, 1], [1.99, 0]])  # the second on the first, the last on the rim
    means, deviations = noise(7, 2), noise(7, 2) + 0.5
    thumbnails = places, noise(4, 6, 8, 1)
    figure = planes.landscape(noise(60, 2), None, (), density, (means, deviations), thumbnails, "caption")
    axes = figure.axes[0]
    shading, *pictures = axes.images
    assert shading.get_array().shape == (30, 30) and axes.get_title("left") == "caption"
    corners = np.array([picture.get_extent() for picture in pictures]).reshape(-1, 2, 2).mean(axis=2)
    np.testing.assert_allclose(corners, places[[0, 2]], atol=1e-9)
    x0, x1, y0, y1 = pictures[0].get_extent()
    (left, bottom), (right, top) = axes.transData.transform([(x0, y0), (x1, y1)])
    assert (right - left) / (top - bottom) == pytest.approx(8 / 6)
    *_, scatter, ellipses = axes.collections
    np.testing.assert_allclose(ellipses.get_offsets(), means)
    np.testing.assert_allclose(ellipses.get_widths(), 2 * deviations[:, 0], rtol=1e-6)
    assert len(scatter.get_offsets()) == 60
    words = texts(axes.get_legend().get_texts())
    assert words == ["test images", "prior (50, 80, 95 %)", "7 pseudo-inputs:\nposteriors, 1 sd"]
    assert axes.get_xlim() == (-2, 2) and axes.get_ylim() == (-4, 4)


def test_names_stand_under_their_tiles_and_below_groups_of_columns():
    figure = sheets.sheet(noise(4, 3, 8, 8, 1), row_breaks=(2,), room=sheets.WRITTEN)
    axes = figure.axes[0]
    rows, columns = axes.get_yticks(), axes.get_xticks()
    sheets.name_tiles(figure, [("a", "b", "c"), ("d", "", "f")])
    assert texts(axes.texts) == ["a", "b", "c", "d", "", "f"]
    np.testing.assert_allclose([text.xy[0] for text in axes.texts], np.tile(columns, 2))
    np.testing.assert_allclose([text.xy[1] for text in axes.texts], np.repeat(rows[[1, 3]] + rows[0], 3))
    sheets.name_columns(figure, ["all"])
    assert texts(axes.get_xticklabels()) == ["all"] and axes.get_xticks() == pytest.approx(columns.mean())


def test_the_use_of_pseudo_inputs_is_shown_with_both_ends():
    shares = np.array([0.5, 0.3, 0.15, 0.04996, 0.00004])
    ends = {"most used": (noise(2, 8, 8, 1), shares[:2]), "least used": (noise(2, 8, 8, 1), shares[:-3:-1])}
    decoded = {name: images / 2 for name, (images, _) in ends.items()}
    steps, *panels = scores.use(shares, ends, decoded, "caption").axes
    (stairs,) = steps.patches
    np.testing.assert_allclose(stairs.get_data().values, 100 * shares)
    assert steps.get_ylabel() == "share of the test images (%)" and steps.get_title("left") == "caption"
    words = ["50 %", "30 %", "", "", "< 0.01 %", "5 %", "", ""]
    assert [axes.get_xlabel() for axes in panels] == words
    np.testing.assert_array_equal(panels[2].images[0].get_array(), decoded["most used"][0][..., 0])


@pytest.mark.parametrize("classes", [None, 1, 10, 40])
def test_embedding_takes_any_number_of_classes(classes):
    labels = None if classes is None else np.arange(80) % classes
    names = tuple(f"class {i}" for i in range(classes or 0))
    figure = planes.embedding(noise(80, 2), labels, names, ("a", "b"))
    assert len(figure.axes[0].get_legend().get_texts()) == (classes or 1)
    assert len(np.unique(figure.axes[0].collections[0].get_facecolors(), axis=0)) == (classes or 1)
    assert len(style.rendered(figure)) > 5000


def test_loss_history_names_units_and_marks_the_best_epoch():
    history = HISTORY | {"val_elbo": np.array([-9.0, -4.0, -6.0, -5.0])}
    figure = curves.losshistory(history, "a note")
    assert [axes.get_ylabel() for axes in figure.axes] == ["ELBO (nats)", "rate (nats)", "distortion (nats)"]
    for axes in figure.axes:
        trained, validation, best, dot = axes.lines
        assert len(trained.get_xdata()) == len(validation.get_xdata()) == 4
        assert best.get_xdata()[0] == dot.get_xdata()[0] == 2 and axes.get_xlabel() == "epoch"
    assert "epoch 2" in figure.axes[0].get_title("left") and figure.axes[1].get_title("left") == "a note"
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), history["val_elbo"])


def test_overlay_has_a_curve_for_each_run_the_best_first():
    curves = {name: (np.arange(5) + 1, np.linspace(-9, best, 5)) for name, best in (("a", -3.0), ("b", -2.5))}
    axes = overlay(curves).axes[0]
    minus = "\N{MINUS SIGN}"
    assert texts(axes.get_legend().get_texts()) == [f"b: {minus}2.50", f"a: {minus}3.00"]
    assert axes.get_ylabel() == "validation ELBO (nats)"


def test_the_steep_start_of_a_long_curve_does_not_flatten_the_rest():
    curve = np.concatenate([[-500.0], np.linspace(-110, -100, 39)])
    axes = curves.overlay({"run": (np.arange(40) + 1, curve)}).axes[0]
    assert -115 < axes.get_ylim()[0] < -105


def test_the_style_is_the_same_for_everyone_and_does_not_leak():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31}):
        assert curves.overlay({"run": (np.arange(3), np.arange(3.0))}).axes[0].xaxis.label.get_size() == 9
        assert matplotlib.rcParams["font.size"] == 31


# ---------------------------------------------------------------------------------------------- plot.py, no Keras


def test_examples_are_in_rows_by_class():
    labels = np.array([2, 0, 2, 0, 0] + [4] * 15)
    rows, names = examples(labels, 20, ("a", "b", "c", "d", "e"))
    assert names == ("a", "c", "e") and rows.shape == (3, 10)
    assert rows[0].tolist() == [1, 3, 4] + [-1] * 7 and rows[1].tolist() == [0, 2] + [-1] * 8
    assert rows[2].tolist() == list(range(5, 15))


def test_examples_without_labels_are_the_first_images():
    rows, names = examples(None, 37, ())
    assert names == () and rows[rows >= 0].tolist() == list(range(37)) and rows.shape == (4, 10)
    assert examples(None, 1000, ())[0].tolist() == np.arange(100).reshape(10, 10).tolist()


def test_picked_images_are_missing_where_the_index_is_negative():
    images = noise(5, 4, 4, 1)
    grid = picked(images, np.array([[3, -1]]))
    np.testing.assert_array_equal(grid[0, 0], images[3])
    assert np.isnan(grid[0, 1]).all() and grid.dtype == np.float32


def test_the_latent_grid_runs_to_the_right_and_upward():
    z = run_figures.latent_grid(np.array([[1.0, 2, 3], [10, 20, 30]]))
    corners = z[[0, 0, 2, 2], [0, 2, 0, 2]]
    assert z.shape == (3, 3, 2) and corners.tolist() == [[1, 30], [3, 30], [1, 10], [3, 10]]
    assert run_figures.latent_grid(np.array([[1.0, 2, 3]])).tolist() == [[[1], [2], [3]]]


def test_columns_are_classes_at_most_ten_of_them():
    examples = np.arange(370).reshape(37, 10)
    found = run_figures.columns_of(examples)
    assert found.shape == (4, 10) and found[:, 0].tolist() == [0, 1, 2, 3] and found[0, -1] == 360
    assert run_figures.columns_of(examples[:3])[0].tolist() == [0, 10, 20]


@pytest.mark.parametrize(("classes", "expected"), [(2, 2), (10, 10), (50, 10)])
def test_pairs_join_different_classes(classes, expected):
    found = run_figures.pairs(np.arange(classes * 10).reshape(classes, 10))
    assert found.shape == (expected, 2) and (found[:, 0] // 10 != found[:, 1] // 10).all()


def drawn(path="run", **settings):
    """A groups.Drawn of no images with these settings."""
    settings = {"data_set": "digits"} | settings
    return comparisons.Drawn(Path(path), experiment.Config(**settings), {}, *[np.zeros((10, 8, 8, 1))] * 3, note="")


def test_runs_are_labelled_by_what_differs():
    both = [drawn(model="vae"), drawn(model="hvae", prior="vamp", lr=0.01)]
    assert comparisons.differences(both) == ["vae, standard, lr 0.0001", "hvae, vamp, lr 0.01, K 500"]
    assert comparisons.differences([drawn(seed=1), drawn(seed=2)]) == ["seed 1", "seed 2"]
    assert comparisons.differences([drawn(num_pseudo_inputs=1), drawn(path="other")]) == ["run", "other"]
    assert comparisons.differences([drawn(path="_a/run"), drawn(path="b/run")]) == [
        "./_a/run",
        "b/run",
    ]  # else it is hidden


def test_any_character_may_stand_in_a_label():
    curves = {"m$x_{$/run": (np.arange(3), np.arange(3.0)), "$": (np.arange(3), np.arange(3.0))}
    assert style.rendered(overlay(curves)).startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------- tiny runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished tiny runs on digits, a dict of name to folder; see KINDS."""

    tiny = {"data_set": "digits", "network_size": 0.25, "epochs": 1, "lr": 1e-3, "num_pseudo_inputs": 12}
    tiny["max_train_images"] = 512  # two whole batches: JAX compiles a step for each length
    tiny["runs_dir"] = str(tmp_path_factory.mktemp("plot"))
    configs = {n: experiment.Config(model=m, prior=p, latent_dim=d, **tiny) for n, (m, p, d) in KINDS.items()}
    return {name: fit.train(config) for name, config in configs.items()}


@contextlib.contextmanager
def small():
    """Posteriors of two images, by few points, for the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"POSTERIORS": 2, "DRAWS": 60, "COARSE": 20, "FINEST": 40}.items():
            patch.setattr(plot, name, value)
        yield


@pytest.fixture(scope="module")
def plotted(runs):
    """The runs and the lines that one call for all of them prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err, small():
        assert plot.main([*map(str, runs.values())]) == 0
    assert err.getvalue().splitlines() == [f"{path}: {run_figures.MISSING['likelihood']}" for path in runs.values()]
    return runs, out.getvalue().splitlines()


@pytest.fixture(scope="module")
def views(runs):
    """A View of each run."""
    return {name: View(experiment.load(path), "pca") for name, path in runs.items()}


def numpy(tensor):
    """A tensor of any backend as an array."""
    from keras import ops

    return ops.convert_to_numpy(tensor)


def test_a_figure_that_a_run_has_not_is_said(runs, tmp_path, capsys):
    path = str(runs["standard2"])
    assert plot.main([path, "--figures", "pseudouse", "curves", "layers", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{path}: such a run has no {name}" for name in ("pseudouse", "layers")] + [
        "no curves is drawn: among these are no runs that it could compare"
    ]
    assert plot.main([path, "--figures", "samples", "layers", "--out", str(tmp_path)]) == 0


@pytest.mark.keras
def test_every_file_is_there_and_printed(plotted):
    runs, printed = plotted
    own = ("reconmanifold", "manifold", "embedding_z", "embedding_mean", "losshistory", "samples")
    pseudo = ("pseudoinputs", "pseudouse")
    more = {"standard2": ("posterior",), "vamp2": (*pseudo, "posterior"), "hvae3": pseudo}
    expected = set()
    for name, path in runs.items():
        endings = [f"{one}.png" for one in own + more[name]] + ["embedding.npz"]
        expected |= {path / "figures" / f"{path.name}_{ending}" for ending in endings}
        expected.add(path / "figures" / "digits_input.png")
    beside = runs["vamp2"].parent / "figures"
    expected |= {
        beside / f"digits_ldim2_factor0.25_{comparisons.STEMS.get(name, name)}.png" for name in comparisons.FIGURES
    }
    assert sorted(printed) == sorted(map(str, expected))
    on_disk = set(runs["vamp2"].parent.rglob("figures/*"))
    assert on_disk == expected and min(path.stat().st_size for path in on_disk) > 3000


@pytest.mark.keras
@pytest.mark.parametrize("name", KINDS)
def test_the_stored_embedding_is_the_posterior(plotted, name):
    run = experiment.load(plotted[0][name])
    with np.load(run.path / "figures" / f"{run.path.name}_embedding.npz") as file:
        stored = dict(file)
    centre = run.model.posterior(run.images("test")).at_mean()
    np.testing.assert_allclose(stored["mean"], numpy(centre.mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stored["logvar"], numpy(centre.logvar), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stored["label"], run.dataset.split("test").labels)
    assert {stored[key].dtype.name for key in ("z", "mean", "logvar")} == {"float32"}
    top = run.config.latent_dim - run.config.latent_dim // 2 if run.config.model == "hvae" else run.config.latent_dim
    standard = ((stored["z"] - stored["mean"]) * np.exp(-stored["logvar"] / 2))[:, :top]
    assert abs(standard.mean()) < 5 / np.sqrt(standard.size)
    assert abs(np.square(standard).mean() - 1) < 5 * np.sqrt(2 / standard.size)


def test_drawing_again_gives_the_same_bytes(views):
    fresh = View(experiment.load(views["hvae3"].run.path), "pca")
    assert run_figures.embedding_file(fresh) == run_figures.embedding_file(views["hvae3"])
    np.testing.assert_array_equal(fresh.samples, views["hvae3"].samples)


@pytest.mark.parametrize("name", ["standard2", "vamp2"])
def test_the_grid_is_decoded_at_its_latents(views, name):
    view = views[name]
    z = run_figures.latent_grid(run_figures.grid_axes(view)[0])
    shown = shown_tiles(run_figures.draw_grid(view), 20, 20)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1), (3, 11)):
        expected = numpy(view.model.likelihood(z[row, column][None].astype("float32")).mean)[0]
        np.testing.assert_allclose(shown[row][column], expected, atol=1e-5)


def shown_tiles(figure, rows, columns):
    """The images in the one array of a sheet of 8x8 images, in their own resolution, as nested lists."""
    picture = np.asarray(figure.axes[0].images[0].get_array())[..., None]
    factor = (picture.shape[1] - (columns - 1) * sheets.GAP) // (8 * columns)
    step, end = 8 * factor + sheets.GAP, 8 * factor
    cells = [[picture[step * r :, step * c :][:end:factor, :end:factor] for c in range(columns)] for r in range(rows)]
    return cells


def test_manifold_and_embedding_have_the_same_axes(views):
    view = views["vamp2"]
    grid, plane = run_figures.draw_grid(view).axes[0], run_figures.draw_embedding_z(view).axes[0]
    assert [grid.get_xlabel(), grid.get_ylabel()] == [plane.get_xlabel(), plane.get_ylabel()] == ["z[0]", "z[1]"]
    across, up = run_figures.grid_axes(view)[0]
    assert texts(grid.get_xticklabels()) == sheets.every_other(across)
    assert texts(grid.get_yticklabels())[::-1] == sheets.every_other(up)
    points = np.asarray(plane.collections[0].get_offsets())
    np.testing.assert_allclose(np.sort(points, axis=0), np.sort(view.embedding.z, axis=0), rtol=1e-6)
    assert plane.get_xlim()[0] < plane.get_xlim()[1] and plane.get_ylim()[0] < plane.get_ylim()[1]


def test_the_grid_is_spaced_by_quantiles(views):
    axes, spacing = run_figures.grid_axes(views["standard2"])
    np.testing.assert_allclose(axes[:, [0, 9, -1]], [[-1.959964, -0.062707, 1.959964]] * 2, atol=1e-5)
    assert spacing == "the prior"
    axes, spacing = run_figures.grid_axes(views["vamp2"])
    below = (views["vamp2"].embedding.mean[:, :, None] < axes).mean(axis=0)
    np.testing.assert_allclose(below, np.tile((np.arange(20) + 0.5) / 20, (2, 1)), atol=0.01)
    assert spacing == "the posterior means"


@pytest.mark.parametrize("name", ["vamp2", "hvae3"])
def test_pseudo_inputs_are_marked_at_the_means_of_their_posteriors(views, name):
    view = views[name]
    top = numpy(view.model.top_prior.distribution().mean)
    assert view.components.shape == (12, view.config.latent_dim)
    np.testing.assert_allclose(view.components[:, : top.shape[1]], top, rtol=1e-4, atol=1e-5)
    whole = numpy(view.model.posterior(view.model.top_prior.pseudo_inputs).at_mean().mean)
    np.testing.assert_allclose(view.components, whole, rtol=1e-4, atol=1e-5)
    assert len(run_figures.draw_embedding_mean(view).axes[0].collections[-1].get_offsets()) == 12


@pytest.mark.parametrize("name", ["vamp2", "hvae3"])
def test_the_use_of_pseudo_inputs_is_that_of_the_posterior_samples(views, name):
    view = views[name]
    top = view.model.prior().top
    log_parts = numpy(top.log_parts(view.embedding.z[:, : view.model.sizes[0]]))
    expected = np.exp(log_parts - scipy.special.logsumexp(log_parts, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(view.shares, expected, rtol=1e-4)
    assert view.shares.sum() == pytest.approx(1, abs=1e-5)
    steps, *panels = run_figures.draw_pseudouse(view).axes
    assert steps.get_title("left").endswith("of 12 (perplexity)") and len(panels) == 4 * run_figures.USED
    most = numpy(view.model.top_prior.pseudo_inputs)[np.argmax(expected)]
    np.testing.assert_allclose(panels[0].images[0].get_array(), most[..., 0], atol=1e-6)


def test_posteriors_of_pseudo_inputs_are_ellipses_of_one_standard_deviation(views):
    view = views["vamp2"]
    collection = run_figures.draw_embedding_mean(view).axes[0].collections[-1]
    centre = view.model.posterior(view.model.top_prior.pseudo_inputs).at_mean()
    np.testing.assert_allclose(collection.get_widths(), 2 * np.exp(numpy(centre.logvar)[:, 0] / 2), rtol=1e-4)
    assert run_figures.ellipses(views["standard2"]) is None
    assert len(run_figures.draw_embedding_mean(views["standard2"]).axes[0].images) >= 2


def test_reconstructions_have_log_px_under_them_where_it_is_known(views):
    view = View(views["standard2"].run, "pca")
    index = run_figures.columns_of(view.examples)
    bare = run_figures.draw_reconmanifold(view).axes[0]
    assert not bare.texts and [label.strip() for label in texts(bare.get_xticklabels())] == list("0123456789")
    view = View(view.run, "pca")
    view.evaluation = evaluation(index[:2].ravel(), -np.arange(20.0))
    axes = run_figures.draw_reconmanifold(view).axes[0]
    expected = [f"\N{MINUS SIGN}{n}.0" for n in range(20)]
    assert texts(axes.texts) == ["\N{MINUS SIGN}0.0", *expected[1:], *[""] * 20]
    shown = np.asarray(axes.images[0].get_array())
    factor = sheets.enlarged(np.zeros((8, 10, 8, 8, 1), np.float32)).shape[2] // 8
    np.testing.assert_array_equal(shown[: 8 * factor : factor, : 8 * factor : factor], view.images[index[0, 0], ..., 0])


def test_contours_come_from_the_models_prior(views):
    density = views["vamp2"].density
    corner = np.array([[density.x[-1], density.y[0]]], "float32")
    np.testing.assert_allclose(density.log_p[0, -1], numpy(views["vamp2"].model.prior().log_prob(corner))[0], rtol=1e-4)
    assert views["hvae3"].density is None


def test_lines_begin_and_end_at_reconstructions(views):
    view = views["hvae3"]
    axes = run_figures.draw_interpolations(view).axes[0]
    assert texts(axes.get_xticklabels()) == ["image", "0", "", "0.25", "", "0.5", "", "0.75", "", "1", "image"]
    factor = sheets.enlarged(np.zeros((10, 11, 8, 8, 1), np.float32)).shape[2] // 8
    picture, start = np.asarray(axes.images[0].get_array()), 8 * factor + sheets.BREAK
    first = view.images[run_figures.pairs(view.examples)[0]]
    np.testing.assert_allclose(picture[: 8 * factor : factor, : 8 * factor : factor], first[0, ..., 0])
    expected = numpy(view.model.reconstruct(first))[0, ..., 0]
    np.testing.assert_allclose(picture[: 8 * factor : factor, start:][:, : 8 * factor : factor], expected, atol=1e-4)


def test_samples_are_the_models_own_by_the_runs_seed(views):
    view = views["hvae3"]
    assert view.samples.shape == (100, 8, 8, 1)
    expected = numpy(view.model.sample(100, view.config.seed))
    np.testing.assert_allclose(view.samples, expected, atol=1e-5)


def test_a_comparison_has_a_row_for_each_run(views):
    members = [comparisons.drawn_of(views[name]) for name in ("standard2", "vamp2")]
    axes = comparisons.draw_comparison(members).axes[0]
    assert texts(axes.get_yticklabels()) == ["test images", "standard", "vamp, K 12"] and len(axes.get_xticks()) == 20
    labels = views["vamp2"].split.labels
    chosen = [row[0] for row in views["vamp2"].examples]
    assert sorted(labels[chosen]) == list(range(10))
    np.testing.assert_array_equal(members[0].originals, views["vamp2"].split.grey(chosen))


# ---------------------------------------------------------------------------------------------- p(z|x) in the plane


def gaussian(mean, sd):
    """The log-density of N(mean, diag sd^2), up to a constant, as a function (M, 2) -> (M,)."""
    return lambda z: 3 - 0.5 * np.square((z - mean) / sd).sum(axis=1)


@pytest.mark.parametrize("mean", [(0.0, 0), (31, -8), (0.3, 250)])
@pytest.mark.parametrize("sd", [(1.0, 1), (0.02, 0.5), (30, 0.1)])
def test_a_posterior_is_found_wherever_the_search_begins(mean, sd):
    boxes = [np.array([[-3.0, -4], [4, 3]]), np.array([[1.0, 1], [1.2, 1.3]])]
    density = posteriors.located(gaussian(np.array(mean), np.array(sd)), boxes)
    p = np.exp(density.log_p - density.log_p.max())
    across, up = p.sum(axis=0) / p.sum(), p.sum(axis=1) / p.sum()
    for values, share, centre, width in zip(density[:2], (across, up), mean, sd, strict=True):
        assert values @ share == pytest.approx(centre, abs=0.01 * width)
        assert np.sqrt(np.square(values - centre) @ share) == pytest.approx(width, rel=0.02)
        assert 8 * width < np.ptp(values) < 14 * width
    assert density.log_sum() == pytest.approx(3 + np.log(2 * np.pi * np.prod(sd)), abs=1e-3)


def test_a_posterior_of_two_modes_is_held_whole_and_resolved():
    def log_p(z):
        return np.logaddexp(gaussian((-2.0, 0.0), 0.05)(z), gaussian((3.0, 1.0), 0.1)(z))

    density = posteriors.located(log_p, [np.array([[-5.0, -5], [5, 5]])])
    assert density.log_sum() == pytest.approx(3 + np.log(2 * np.pi * (0.05**2 + 0.1**2)), abs=0.01)
    held = density.held(0.9)
    assert (held[:, 0] < -1.8).any() and (held[:, 0] > 2.8).any() and len(density.x) > 100


class Beside(Linear):
    """The linear model whose q(z|x) is too wide and lies a standard deviation and a half beside p(z|x)."""

    def posterior(self, x):
        exact = super().posterior(x)
        return exact._replace(mean=exact.mean + np.exp(self.logvar / 2))


@pytest.mark.keras
def test_resampled_draws_have_the_moments_of_the_exact_posterior(monkeypatch):
    monkeypatch.setattr(posteriors, "DRAWS", 5000)
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run.model, run.images = Beside(standard()), lambda name: IMAGES
    row = posteriors.image_posterior(View(run, "pca"), 4)
    mean = IMAGES[4].reshape(6) @ run.model.to_mean
    (points,) = row.points.values()
    sd = np.exp(run.model.logvar / 2) / 1.5
    error = sd / np.sqrt(row.ess)
    assert (np.abs(points.mean(axis=0) - mean) < 5 * error).all()
    assert 0.05 * 5000 < row.ess < 0.6 * 5000
    grid = np.exp(row.exact.log_p - row.exact.log_sum()) * np.diff(row.exact.x[:2]) * np.diff(row.exact.y[:2])
    exact = [grid.sum(axis=0) @ row.exact.x, grid.sum(axis=1) @ row.exact.y]
    np.testing.assert_allclose(exact, mean, atol=0.01)
    assert row.log_px == pytest.approx(exact_log_px(IMAGES[4]), abs=0.01) and row.kl > 0.5
    inside = (row.limits[0] < points) & (points < row.limits[1])
    assert inside.mean() > 0.98 and (row.limits[0] < mean).all() and (mean < row.limits[1]).all()


def exact_log_px(image):
    """log p(x) of the linear model with a standard prior."""
    covariance = WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(6)
    return scipy.stats.multivariate_normal(np.zeros(6), covariance).logpdf(image.ravel())


@pytest.mark.keras
@pytest.mark.parametrize("settings", first_on_both({"objective": "lmcvae"}, {"model": "hvae", "prior": "vamp"}))
def test_posteriors_stand_in_rows_over_the_same_plane(settings):
    run = stub((8, 8, 1), np.arange(24) % 3, ("a", "b", "c"), latent_dim=2, **settings)
    with small():
        figure = run_figures.draw_posterior(View(run, "pca"))
    ends = "objective" in settings
    rows = np.reshape(figure.axes, (2, 4 + ends))
    heads = [axes.get_title("left").split("\n")[0] for axes in rows[0, 1:]]
    assert heads == ["p(z|x)", "q(z|x)", "q(z|x), resampled", "ends of chains"][: 3 + ends]
    assert [axes.get_xlabel() for axes in rows[:, 0]] == ["a", "b"]
    assert {axes.get_ylabel() for axes in rows[:, 1]} == {"z[1]"}
    assert {axes.get_xlabel() for axes in rows[-1, 1:]} == {"z[0]"}
    for picture, exact, fitted, *points in rows:
        assert len(picture.images) == len(exact.images) == len(fitted.images) == 1
        for axes in (fitted, *points):
            assert axes.get_xlim() == exact.get_xlim() and axes.get_ylim() == exact.get_ylim()
        assert [axes.lines[0].get_xydata().shape for axes in points] == [(60, 2)] * (1 + ends)


@pytest.mark.keras
def test_a_joint_density_that_is_nan_is_refused():
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run.model.decoder.weights[-1].assign(np.full(run.model.decoder.weights[-1].shape, np.nan, "float32"))
    with pytest.raises(UserError, match="NaN; the weights are not usable"):
        run_figures.draw_posterior(View(run, "pca"))


# ---------------------------------------------------------------------------------------------- log p(x)


def evaluation(index, log_px):
    """An experiment.Evaluation of these images."""
    return Evaluation("test_is_S5_N9", index, log_px, *[np.full(len(index), np.nan)] * 4)


def scored(labels, names, index, log_px, **settings):
    """A View of a stub with that evaluation."""
    run = stub((8, 8, 1), labels, names, latent_dim=3, **settings)
    run.evaluation = {"test": evaluation(index, log_px)}.get
    return View(run, "pca")


def test_log_px_is_shown_over_all_by_class_and_at_both_ends():
    index, log_px = np.array([2, 23, 0, 5, 7, 10, 4, 1, 13, 16, 20]), -np.array([5.0, 1, 9, 3, 8, 2, 7, 4, 11, 6, 10])
    view = scored(np.arange(24) % 3, ("cat", "dog", "eel"), index, log_px)
    histogram, boxes, *ends = run_figures.draw_likelihood(view).axes
    assert sum(bar.get_height() for bar in histogram.patches) == 11
    assert histogram.get_ylabel() == "test images" and boxes.get_xlabel() == "log p(x) (nats)"
    assert histogram.get_title("left") == "mean \N{MINUS SIGN}6.00 ± 1.00 (test_is_S5_N9)"
    assert texts(boxes.get_yticklabels()) == ["cat", "dog", "eel"] and len(boxes.patches) == 3
    middles = [np.median(log_px[index % 3 == label]) for label in range(3)]
    drawn = [line.get_xdata()[0] for line in boxes.lines if line.get_linewidth() == 1.1]
    np.testing.assert_allclose(drawn, middles)
    assert [axes.get_xlabel() for axes in ends] == [f"\N{MINUS SIGN}{n}.00" for n in (11, 10, 9, 8, 7, 1, 2, 3, 4, 5)]
    for axes, number in zip(ends, (13, 20, 0, 7, 4, 23, 10, 5, 1, 2), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), view.images[number][..., 0])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_log_px_of_few_images_without_classes_is_shown_too(count):
    figure = run_figures.draw_likelihood(scored(None, (), np.arange(count), np.linspace(-5, -4, count)))
    assert len(figure.axes) == 1 + 2 * max(1, count // 2)
    assert sum(len(axes.images) for axes in figure.axes) == 2 * (count // 2)
    assert len(style.rendered(figure)) > 3000


def test_no_likelihood_is_drawn_without_a_score_of_these_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_figures, "FIGURES", {"likelihood": run_figures.draw_likelihood})
    view = scored(None, (), np.arange(3) + 22, -np.arange(3.0))
    run_figures.draw_run(view.run, plot.Output(tmp_path), "pca")
    assert not list(tmp_path.glob("*.png")) and capsys.readouterr().err.endswith("run evaluate.py first\n")
    view = scored(None, (), np.arange(3) + 21, -np.arange(3.0))
    run_figures.draw_run(view.run, plot.Output(tmp_path), "pca")
    assert len(list(tmp_path.glob("*_likelihood.png"))) == 1 and capsys.readouterr().err == ""


def test_estimates_by_groups_have_the_known_mean_and_spread():
    """Log-weights N(m, s^2): the mean of one is m, that of the log of a mean of many comes to m + s^2 / 2."""
    s, rng = 0.5, np.random.default_rng(0)
    log_w = np.array([-3.0, -1.0])[:, None] + s * rng.normal(size=(2, max(estimates.COUNTS)))
    values = estimates.by_samples(log_w)
    assert values.shape == (len(estimates.COUNTS), 2)
    np.testing.assert_allclose(values[0], [log_w.mean(), s / np.sqrt(2)], rtol=0.05)
    mean, error = values[-1]
    assert abs(mean - (-2 + s**2 / 2)) < 4 * error
    relative = np.sqrt(np.expm1(s**2))  # of a weight's standard deviation to its mean
    counts = np.array(estimates.COUNTS[3:8])  # of more, there are few groups
    np.testing.assert_allclose(values[3:8, 1], relative / np.sqrt(2 * counts), rtol=0.5)
    assert error == pytest.approx(relative / np.sqrt(2 * 2000), rel=0.15)
    assert (np.diff(values[:6, 0]) > 0).all()


@pytest.mark.keras
def test_estimates_rise_to_the_integral_and_those_from_q_later(monkeypatch):
    monkeypatch.setattr(
        estimates, "integrated", lambda view, images: np.mean([exact_log_px(image) for image in images])
    )
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run.model, run.images = Beside(standard()), lambda name: IMAGES
    whole, end = run_figures.draw_estimates(View(run, "pca")).axes
    q, fitted, integral = whole.lines
    truth = integral.get_ydata()[0]
    assert whole.get_xscale() == "log" and q.get_xdata().tolist() == list(estimates.COUNTS)
    assert (whole.get_xlabel(), whole.get_ylabel()) == ("samples S of an image", "log p(x) (nats)")
    assert q.get_label().startswith("q(z|x): ") and fitted.get_label().startswith("fitted to p(z|x): ")
    assert len(whole.collections) == len(end.collections) == 2 and "11 test images" in whole.get_title("left")
    assert q.get_ydata()[0] < truth - 1 and (np.diff(q.get_ydata()[:5]) > 0).all()
    assert abs(q.get_ydata()[-1] - truth) < 0.1 and abs(fitted.get_ydata()[-1] - truth) < 0.05
    bottom, top = end.get_ylim()
    assert bottom < truth < top and end.get_xlim()[0] > 10


def test_estimates_are_drawn_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_figures, "FIGURES", {})
    monkeypatch.setattr(estimates, "COUNTS", (1, 2, 5, 10))
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run_figures.draw_run(run, plot.Output(tmp_path), "pca")
    assert not list(tmp_path.glob("*.png"))
    run_figures.draw_run(run, plot.Output(tmp_path), "pca", estimates=True)
    assert len(list(tmp_path.glob("*_estimates.png"))) == 1 and capsys.readouterr().err == ""
    view = View(run, "pca")
    lines = run_figures.draw_estimates(view).axes[0].lines
    assert lines[-1].get_label() == f"quadrature: {style.decimals(estimates.integrated(view, view.images))}"
    deep = run_figures.draw_estimates(View(stub((8, 8, 1), None, (), latent_dim=3), "pca"))
    assert len(deep.axes[0].lines) == 2


def test_estimates_of_a_pixel_network_are_left_out_and_those_of_nan_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_figures, "FIGURES", {})
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run.config = experiment.Config(data_set="digits", model="hvae", network="pixel")
    monkeypatch.setattr(comparisons, "drawn_of", lambda view: None)
    run_figures.draw_run(run, plot.Output(tmp_path), "pca", estimates=True)
    assert not list(tmp_path.glob("*.png")) and "pixel by pixel" in capsys.readouterr().err
    run.model.q_z.mean.bias.assign(np.full(2, np.nan, "float32"))
    with pytest.raises(UserError, match="test image 0 is not finite"):
        run_figures.draw_estimates(View(run, "pca"))


# ---------------------------------------------------------------------------------------------- other data, bad input


def stub(shape, labels, names, **settings):
    """What plot.py needs of a run: an untrained model and noise for images."""
    config = experiment.Config(**{"data_set": "digits", "network_size": 0.25, "num_pseudo_inputs": 3} | settings)
    split = Split((noise(24, *shape) * 255).astype(np.uint8), labels, 255)
    return SimpleNamespace(
        path=Path("nowhere"),
        config=config,
        history=HISTORY,
        model=models.build(config, shape, from_data=noise(3, *shape)),
        dataset=SimpleNamespace(class_names=names, split=lambda name: split),
        images=lambda name: split.grey(),
        evaluation=lambda name: None,
        latent_dim=config.latent_dim,
        note="",
    )


@pytest.mark.filterwarnings("error:You are using a softmax")
def test_one_pseudo_input_has_a_use():
    run = stub((8, 8, 1), None, (), latent_dim=2, prior="vamp", num_pseudo_inputs=1)
    run.model = models.build(run.config, (8, 8, 1), from_data=noise(1, 8, 8, 1))
    assert style.rendered(run_figures.draw_pseudouse(View(run, "pca"))).startswith(b"\x89PNG")


@pytest.mark.parametrize("projection", projections.PROJECTIONS)
@pytest.mark.parametrize("means", [np.ones((1, 5)), np.ones((40, 5))], ids=["one", "equal"])
def test_latents_that_show_no_plane_lie_on_the_first_two_axes(projection, means):
    view = SimpleNamespace(components=np.zeros((3, 5)), projection=projection, embedding=SimpleNamespace(mean=means))
    both, names, caption = run_figures.flattened(view, means)
    np.testing.assert_array_equal(both, np.concatenate([means, view.components])[:, :2])
    assert names == ("z[0]", "z[1]") and caption == "the first two of 5 dimensions"


@pytest.mark.parametrize(
    "kind",
    [
        ((28, 20, 1), np.arange(24) % 3, ("a", "b", "c"), {"latent_dim": 5, "model": "hvae", "prior": "vamp"}, "pca"),
        ((12, 4, 1), np.arange(24) % 2, ("a", "b"), {"latent_dim": 3, "prior": "vamp"}, "tsne"),
        ((32, 32, 3), None, (), {"latent_dim": 2, "prior": "vamp", "binarize": "none"}, "pca"),
        ((8, 8, 1), np.arange(24) // 2, tuple("abcdefghijkl"), {"latent_dim": 1}, "tsne"),
    ],
    ids=["wide", "narrow", "colour", "many classes"],
)
def test_any_shape_and_any_classes_can_be_drawn(tmp_path, monkeypatch, kind):
    shape, labels, names, settings, projection = kind
    monkeypatch.setattr(sheets, "SHEET_PIXELS", (300, 300))
    run = stub(shape, labels, names, **settings)
    with small(), threadpool_limits(1):  # t-SNE's threads wait for each other where cores are shared
        one = run_figures.draw_run(run, plot.Output(tmp_path), projection)
    expected = 8 + 2 * run.config.has_pseudo_inputs + (run.config.latent_dim == 2)
    assert len(list(tmp_path.iterdir())) == expected
    assert one.samples.shape == (32, *shape) and one.reconstructions.shape == one.originals.shape


def test_all_goes_to_out_where_that_is_given(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_figures, "FIGURES", {name: run_figures.FIGURES[name] for name in ("input", "samples")})
    out = tmp_path / "new" / "folder"
    assert plot.main([str(runs["standard2"]), str(runs["vamp2"]), str(runs["vamp2"]), "--out", str(out)]) == 0
    names = [path.name for path in out.iterdir()]
    assert names.count("digits_input.png") == 1 and "digits_ldim2_factor0.25_comparison.png" in names
    assert capsys.readouterr().out.splitlines().count(str(out / "digits_input.png")) == 1
    assert not [name for name in names if name.startswith(".")]


def test_an_out_that_is_a_file_is_refused_in_a_sentence(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert plot.main([str(runs["standard2"]), "--out", str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: cannot write") and "--out" in captured.err and captured.out == ""
    assert (tmp_path / "file").read_text() == "mine"


def test_runs_of_the_same_id_do_not_overwrite_each_other(runs, tmp_path, capsys):
    copy = shutil.copytree(runs["standard2"], tmp_path / "copy")
    assert plot.main([str(runs["standard2"]), str(copy), "--out", str(tmp_path / "out")]) == 2
    assert "same id" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused():
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run.model.q_z.mean.bias.assign(np.full(2, np.nan, "float32"))
    with pytest.raises(UserError, match="not finite"):
        run_figures.embedding_file(View(run, "pca"))


def test_a_grid_without_a_run_that_can_be_drawn_is_refused(tmp_path, capsys):
    assert plot.main(["--gs_key", "none", "--runs_dir", str(tmp_path)]) == 2
    assert "holds no run with weights; train it with --gs_key none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "said"), [("TkAgg", "True"), ("nonsense", "cannot be imported with MPLBACKEND=nonsense; unset it")]
)
def test_no_display_is_needed_whatever_matplotlib_is_told_to_use(backend, said):
    code = "import figures, numpy; print(len(figures.rendered(figures.sheet(numpy.zeros((1, 2, 4, 4, 1))))) > 200)"
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env["MPLBACKEND"] = backend
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert said in done.stdout + done.stderr


def test_a_projection_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        plot.main(["run", "--projection", "umap"])
    assert exit.value.code == 2 and "umap" in capsys.readouterr().err
