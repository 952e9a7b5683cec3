"""Figures that are made of arrays: sheets of images, planes, curves, scores, and their style."""

import io
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from made import HISTORY, noise, texts

from experiment import Config
from plotting import curves, latents, planes, sheets, style


def modules_after(code):
    """The modules that are imported when `code` has run in a fresh interpreter."""
    lines = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def pixels(png):
    """The RGB values in [0, 1] of a PNG file's bytes: (h, w, 3)."""
    from matplotlib.image import imread

    return imread(io.BytesIO(png))[..., :3]


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
    grid = noise(4, 3, 8, 8, 1)
    bare = sheets.sheet(grid).axes[0]
    rows, columns = bare.get_yticks(), bare.get_xticks()
    axes = sheets.sheet(grid, "", ("a", "b"), "xyz", ("z[0]", "class")).axes[0]
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


def drawn(**parts):
    """A View with these parts, as far as a figure of the latent plane asks for them."""
    usual = {"labels": None, "class_names": (), "density": None, "components": np.zeros((0, 2)), "said": "test images"}
    return SimpleNamespace(**usual | {"latent_names": ["z2", "z1"]} | parts)


def test_embedding_shows_every_point_in_its_colour_and_in_mixed_order():
    points, labels = noise(60, 2), np.repeat([0, 1, 2], 20)
    line = np.linspace(-1, 2, 30)
    density = planes.Density(line, 2 * line, -np.square(line) - np.square(line[:, None]))
    view = drawn(labels=labels, class_names=("cat", "dog", "eel", "none here"), density=density, components=noise(7, 2))
    axes = latents.draw_embedding(view, points).axes[0]
    scatter, contours, components = axes.collections
    shown, palette = np.asarray(scatter.get_offsets()), scatter.get_facecolors()
    colour_of = {tuple(point): tuple(colour) for point, colour in zip(shown, palette, strict=True)}
    assert len(colour_of) == 60 and len(set(colour_of.values())) == 3
    for name in range(3):
        assert len({colour_of[tuple(point)] for point in points[labels == name]}) == 1
    assert not (shown == points).all()
    assert len(contours.get_paths()) == len(planes.SHARES) and len(components.get_offsets()) == 7
    assert texts(axes.get_legend().get_texts()) == ["cat", "dog", "eel", "prior (50, 80, 95 %)", "7 pseudo-inputs"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("z2", "z1", "")
    assert axes.get_xlim() == (-1, 2) and axes.get_ylim() == (-2, 4)


def test_a_landscape_has_ellipses_and_pictures_that_do_not_overlap():
    line = np.linspace(-2, 2, 30)
    density = planes.Density(line, 2 * line, -np.square(line) - np.square(line[:, None]))
    places = np.array([[0.0, 0], [0.01, 0.01], [1, 1], [1.99, 0]])  # the second on the first, the last on the rim
    means, deviations = noise(4, 2), noise(4, 2) + 0.5
    posterior = SimpleNamespace(mean=means, logvar=2 * np.log(deviations))
    model = SimpleNamespace(
        top_prior=SimpleNamespace(pseudo_inputs=noise(4, 6, 8, 1)),
        posterior=lambda x: SimpleNamespace(at_mean=lambda: posterior),
    )
    view = drawn(density=density, components=places, shares=np.array([0.4, 0.3, 0.2, 0.1]), model=model)
    view.embedding, view.config = SimpleNamespace(mean=noise(60, 2)), Config(prior="vamp")
    axes = latents.draw_embedding_mean(view).axes[0]
    shading, *pictures = axes.images
    assert shading.get_array().shape == (30, 30)
    assert axes.get_title("left") == "pictures: pseudo-inputs, at the means of their posteriors"
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
    assert words == ["test images", "prior (50, 80, 95 %)", "4 pseudo-inputs:\nposteriors, 1 sd"]
    assert axes.get_xlim() == (-2, 2) and axes.get_ylim() == (-4, 4)


def test_names_stand_under_their_tiles_and_below_groups_of_columns():
    grid, words = noise(4, 3, 8, 8, 1), [("a", "b", "c"), ("d", "", "f")]
    axes = sheets.sheet(grid, words=words, row_breaks=(2,)).axes[0]
    rows, columns = axes.get_yticks(), axes.get_xticks()
    assert rows[2] - rows[1] == rows[1] - rows[0] - sheets.GAP + sheets.WRITTEN
    assert texts(axes.texts) == ["a", "b", "c", "d", "", "f"]
    np.testing.assert_allclose([text.xy[0] for text in axes.texts], np.tile(columns, 2))
    np.testing.assert_allclose([text.xy[1] for text in axes.texts], np.repeat(rows[[1, 3]] + rows[0], 3))
    axes = sheets.sheet(grid, columns=["all"], row_breaks=(2,)).axes[0]
    assert texts(axes.get_xticklabels()) == ["all"] and axes.get_xticks() == pytest.approx(columns.mean())


@pytest.mark.parametrize("classes", [None, 1, 10, 40])
def test_embedding_takes_any_number_of_classes(classes):
    labels = None if classes is None else np.arange(80) % classes
    view = drawn(labels=labels, class_names=tuple(f"class {i}" for i in range(classes or 0)))
    figure = latents.draw_embedding(view, noise(80, 2))
    assert len(figure.axes[0].get_legend().get_texts()) == (classes or 1)
    assert len(np.unique(figure.axes[0].collections[0].get_facecolors(), axis=0)) == (classes or 1)
    assert len(style.rendered(figure)) > 5000


def test_loss_history_names_units_and_marks_the_best_epoch():
    history = HISTORY | {"val_elbo": np.array([-9.0, -4.0, -6.0, -5.0])}
    figure = curves.losshistory(SimpleNamespace(run=SimpleNamespace(history=history, note="a note"), config=Config()))
    assert [axes.get_ylabel() for axes in figure.axes] == ["ELBO (nats)", "rate (nats)", "distortion (nats)"]
    for axes in figure.axes:
        trained, validation, best, dot = axes.lines
        assert len(trained.get_xdata()) == len(validation.get_xdata()) == 4
        assert best.get_xdata()[0] == dot.get_xdata()[0] == 2 and axes.get_xlabel() == "epoch"
    assert "epoch 2" in figure.axes[0].get_title("left") and figure.axes[1].get_title("left") == "a note"
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), history["val_elbo"])


def test_the_style_is_the_same_for_everyone_and_does_not_leak():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31}):
        figure = sheets.sheet(noise(1, 2, 4, 4, 1), axis_names=("z[0]", ""))
        assert figure.axes[0].xaxis.label.get_size() == 9
        assert matplotlib.rcParams["font.size"] == 31


@pytest.mark.parametrize(
    "named",
    [
        pytest.param("TkAgg", marks=pytest.mark.slow),
        pytest.param("nonsense", marks=pytest.mark.slow),
        "module://matplotlib_inline.backend_inline",
    ],
)
def test_no_display_is_needed_whatever_matplotlib_is_told_to_use(named, script, tmp_path):
    """Jupyter tells all its child processes to use a module that their environment need not have."""
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: \xff")
    code = "import numpy; from runtime import backend; backend.settle(); backend.start(); "
    code += "from plotting import sheets, style; "
    code += "print(len(style.rendered(sheets.sheet(numpy.zeros((1, 2, 4, 4, 1))))) > 200)"
    done = script("-c", code, DISPLAY="", WAYLAND_DISPLAY="", MPLBACKEND=named, MPLCONFIGDIR=str(tmp_path))
    assert (done.stdout, done.stderr) == ("True\n", "")
