"""plot.py on tiny runs: what is drawn, where it lies, and that it is what the model says."""

import contextlib
import io
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
from conftest import ROOT, complaints, save_weights, slow_on_jax
from made import KINDS, copies, evaluation, keep, noise, numpy, small, stub, texts
from threadpoolctl import threadpool_limits

import experiment
import models
import plot
from experiment.config import UserError
from plotting import comparisons, curves, latents, run_figures, scores, sheets, style
from plotting.view import View, evenly, examples, picked

VAMP = {"latent_dim": 3, "prior": "vamp"}
HVAE = {"latent_dim": 5, "model": "hvae", "prior": "vamp"}


def test_examples_are_in_rows_by_class():
    labels = np.array([2, 0, 2, 0, 0] + [4] * 15)
    rows, names = examples(labels, np.arange(20), ("a", "b", "c", "d", "e"))
    assert names == ("a", "c", "e") and rows.shape == (3, 10)
    assert rows[0].tolist() == [1, 3, 4] + [-1] * 7 and rows[1].tolist() == [0, 2] + [-1] * 8
    assert rows[2].tolist() == list(range(5, 15))


def test_examples_without_labels_are_the_first_in_the_order():
    rows, names = examples(None, np.arange(37), ())
    assert names == () and rows[rows >= 0].tolist() == list(range(37)) and rows.shape == (4, 10)
    assert examples(None, np.arange(1000)[::-1], ())[0].tolist() == np.arange(900, 1000)[::-1].reshape(10, 10).tolist()


def test_picked_images_are_missing_where_the_index_is_negative():
    images = noise(5, 4, 4, 1)
    grid = picked(images, np.array([[3, -1]]))
    np.testing.assert_array_equal(grid[0, 0], images[3])
    assert np.isnan(grid[0, 1]).all() and grid.dtype == np.float32


def test_the_latent_grid_runs_to_the_right_and_upward():
    z = latents.latent_grid(np.array([[1.0, 2, 3], [10, 20, 30]]))
    corners = z[[0, 0, 2, 2], [0, 2, 0, 2]]
    assert z.shape == (3, 3, 2) and corners.tolist() == [[1, 30], [3, 30], [1, 10], [3, 10]]
    assert latents.latent_grid(np.array([[1.0, 2, 3]])).tolist() == [[[1], [2], [3]]]


def test_columns_are_classes_at_most_ten_of_them():
    examples = np.arange(370).reshape(37, 10)
    found = evenly(examples)
    assert found.shape == (10, 10) and found[0, :4].tolist() == [0, 1, 2, 3] and found[-1, 0] == 360
    assert evenly(examples[:3])[:, 0].tolist() == [0, 10, 20]
    view = View(stub((8, 8, 1), np.arange(24) % 12, tuple("abcdefghijkl"), latent_dim=2), "pca")
    axes = run_figures.draw_reconmanifold(view).axes[0]
    assert len(axes.get_xticks()) == 10 and len(axes.get_yticks()) == 8


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((1,), "z"), ((2,), "z[0] z[1]"), ((1, 1), "z2 z1"), ((2, 1), "z2[0] z2[1] z1"), ((1, 2, 1), "z3 z2[0] z2[1] z1")],
)
def test_latents_are_named_by_their_layers(sizes, expected):
    view = View(stub((8, 8, 1), None, (), latent_dim=2), "pca")
    view.model = SimpleNamespace(sizes=sizes)
    assert view.latent_names == expected.split()


def test_axes_of_two_layers_are_called_after_them():
    view = View(stub((8, 8, 1), None, (), latent_dim=2, model="hvae"), "pca")
    for figure in (latents.draw_manifold(view), latents.draw_embedding_z(view), latents.draw_embedding_mean(view)):
        assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("z2", "z1")


@pytest.mark.parametrize(("classes", "expected"), [(2, 2), (10, 10), (50, 10)])
def test_pairs_join_different_classes(classes, expected):
    found = latents.pairs(np.arange(classes * 10).reshape(classes, 10))
    assert found.shape == (expected, 2) and (found[:, 0] // 10 != found[:, 1] // 10).all()


def test_pairs_of_images_without_classes_join_different_images():
    assert latents.pairs(np.array([[3, 1, 2]])).tolist() == [[3, 1], [1, 2], [2, 3]]
    assert latents.pairs(np.array([[2, 0, 1, -1, -1, -1]])).tolist() == [[2, 0], [0, 1], [1, 2]]  # -1 is no image


# ---------------------------------------------------------------------------------------------- tiny runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished tiny runs on digits, a dict of name to folder."""
    return copies(tmp_path_factory)


@pytest.fixture(scope="module")
def plotted(runs):
    """The runs and the lines that one call for all of them prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err, small():
        assert plot.main([*map(str, runs.values())]) == 0
    unscored = "likelihood is not drawn: these weights have no score on test images yet; run evaluate.py first"
    assert complaints(err.getvalue()) == [f"{path}: {unscored}" for path in runs.values()]
    return runs, out.getvalue().splitlines()


@pytest.fixture(scope="module")
def views(runs):
    """A View of each run."""
    return {name: View(experiment.load(path), "pca") for name, path in runs.items()}


@slow_on_jax
@pytest.mark.keras
def test_a_figure_that_a_run_has_not_is_said(runs, tmp_path, capsys):
    path = str(runs["standard2"])
    assert plot.main([path, "--figures", "pseudouse", "curves", "layers", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{path}: such a run has no {name}" for name in ("pseudouse", "layers")] + [
        "curves is not drawn: none of these runs can be compared in it"
    ]
    assert plot.main([path, "--figures", "samples", "layers", "--out", str(tmp_path)]) == 0


def test_every_file_is_there_and_printed(plotted):
    runs, printed = plotted
    own = (
        "reconmanifold",
        "reconweighted",
        "manifold",
        "embedding_z",
        "embedding_mean",
        "activeunits",
        "losshistory",
        "samples",
    )
    pseudo = ("pseudoinputs", "pseudouse")
    more = {"standard2": ("posterior",), "vamp2": (*pseudo, "posterior"), "hvae3": pseudo}
    expected = set()
    for name, path in runs.items():
        expected |= {path / "figures" / f"{path.name}_{one}.png" for one in own + more[name]}
        expected.add(path / "figures" / "digits_input.png")
    beside = runs["vamp2"].parent / "figures"
    together = ("losshistory", "comparison", "curves", "priors", "densities")
    expected |= {beside / f"digits_ldim2_factor0.25_{name}.png" for name in together}
    assert sorted(printed) == sorted(map(str, expected))
    on_disk = set(runs["vamp2"].parent.rglob("figures/*"))
    assert on_disk == expected and min(path.stat().st_size for path in on_disk) > 3000


def test_figures_are_computed_in_float32(runs):
    run = experiment.load(runs["vamp2"]).in_precision("mixed_bfloat16")
    rounded, drawn = ({one.compute_dtype for one in m._flatten_layers()} for m in (run.model, View(run, "pca").model))
    assert "bfloat16" in rounded and drawn == {"float32"}


@slow_on_jax
@pytest.mark.keras
@pytest.mark.parametrize("name", KINDS)
def test_the_embedding_is_the_posterior(views, name):
    view = views[name]
    centre, embedding = view.model.posterior(view.images).at_mean(), view.embedding
    np.testing.assert_allclose(embedding.mean, numpy(centre.mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedding.logvar, numpy(centre.logvar), rtol=1e-4, atol=1e-5)
    assert {values.dtype.name for values in embedding} == {"float32"}
    dim = view.config.latent_dim
    top = dim - dim // 2 if view.config.model == "hvae" else dim
    standard = ((embedding.z - embedding.mean) * np.exp(-embedding.logvar / 2))[:, :top]
    assert abs(standard.mean()) < 5 / np.sqrt(standard.size)
    assert abs(np.square(standard).mean() - 1) < 5 * np.sqrt(2 / standard.size)


def test_a_view_made_again_has_the_same_numbers(views):
    fresh = View(experiment.load(views["hvae3"].run.path), "pca")
    np.testing.assert_array_equal(fresh.embedding, views["hvae3"].embedding)
    np.testing.assert_array_equal(fresh.samples, views["hvae3"].samples)


@pytest.mark.parametrize("name", ["standard2", "vamp2"])
def test_the_grid_is_decoded_at_its_latents(views, name):
    view = views[name]
    z = latents.latent_grid(latents.grid_axes(view)[0])
    shown = shown_tiles(latents.draw_manifold(view), 20, 20)
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
    grid, plane = latents.draw_manifold(view).axes[0], latents.draw_embedding_z(view).axes[0]
    assert [grid.get_xlabel(), grid.get_ylabel()] == [plane.get_xlabel(), plane.get_ylabel()] == ["z[0]", "z[1]"]
    across, up = latents.grid_axes(view)[0]
    assert texts(grid.get_xticklabels()) == sheets.every_other(across)
    assert texts(grid.get_yticklabels())[::-1] == sheets.every_other(up)
    points = np.asarray(plane.collections[0].get_offsets())
    np.testing.assert_allclose(np.sort(points, axis=0), np.sort(view.embedding.z, axis=0), rtol=1e-6)
    assert plane.get_xlim()[0] < plane.get_xlim()[1] and plane.get_ylim()[0] < plane.get_ylim()[1]


def test_the_grid_is_spaced_by_quantiles(views):
    axes, spacing = latents.grid_axes(views["standard2"])
    np.testing.assert_allclose(axes[:, [0, 9, -1]], [[-1.959964, -0.062707, 1.959964]] * 2, atol=1e-5)
    assert spacing == "the prior"
    axes, spacing = latents.grid_axes(views["vamp2"])
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
    assert len(latents.draw_embedding_mean(view).axes[0].collections[-1].get_offsets()) == 12


@pytest.mark.parametrize("name", ["vamp2", "hvae3"])
def test_the_use_of_pseudo_inputs_is_that_of_the_posterior_samples(views, name):
    view = views[name]
    top = view.model.prior().top
    log_parts = numpy(top.log_parts(view.embedding.z[:, : view.model.sizes[0]]))
    expected = np.exp(log_parts - scipy.special.logsumexp(log_parts, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(view.shares, expected, rtol=1e-4)
    assert view.shares.sum() == pytest.approx(1, abs=1e-5)
    steps, *panels = scores.draw_pseudouse(view).axes
    assert steps.get_title("left").endswith("of 12 (perplexity)") and len(panels) == 4 * scores.USED
    most = numpy(view.model.top_prior.pseudo_inputs)[np.argmax(expected)]
    np.testing.assert_allclose(panels[0].images[0].get_array(), most[..., 0], atol=1e-6)


def test_posteriors_of_pseudo_inputs_are_ellipses_of_one_standard_deviation(views):
    view = views["vamp2"]
    collection = latents.draw_embedding_mean(view).axes[0].collections[-1]
    centre = view.model.posterior(view.model.top_prior.pseudo_inputs).at_mean()
    np.testing.assert_allclose(collection.get_widths(), 2 * np.exp(numpy(centre.logvar)[:, 0] / 2), rtol=1e-4)
    axes = latents.draw_embedding_mean(views["standard2"]).axes[0]
    assert len(axes.images) >= 2 and not any(type(one) is type(collection) for one in axes.collections)


def test_reconstructions_have_log_px_under_them_where_it_is_known(views):
    view = View(views["standard2"].run, "pca")
    index = view.examples[:, : run_figures.OF_CLASS].T
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


@pytest.fixture
def laid_out(monkeypatch):
    """A sheet of images is not drawn: it is its grid (R, columns, H, W, C) and the names of its rows."""
    monkeypatch.setattr(sheets, "sheet", lambda grid, caption="", rows=(), **_: (np.asarray(grid), list(rows)))


def test_each_image_lies_above_what_it_becomes(views, laid_out):
    view = views["vamp2"]
    (images, of_images), (inputs, of_inputs) = [
        (grid[::2].reshape(-1, 8, 8, 1), grid[1::2].reshape(-1, 8, 8, 1))
        for grid, _ in (run_figures.draw_reconmanifold(view), run_figures.draw_pseudoinputs(view))
    ]
    assert len(np.unique(images, axis=0)) == 40
    np.testing.assert_allclose(of_images, view.reconstructed(images), atol=1e-5)
    np.testing.assert_array_equal(inputs[:12], view.model.top_prior.pseudo_inputs)
    assert np.isnan(inputs[12:]).all() and np.isnan(of_inputs[12:]).all()
    np.testing.assert_allclose(of_inputs[:12], view.reconstructed(inputs[:12]), atol=1e-5)
    of_each = comparisons.drawn_of(view).reconstructions
    np.testing.assert_allclose(of_each, view.reconstructed(view.images[view.spread(comparisons.EACH)]), atol=1e-5)


def test_rows_of_a_deep_model_are_named_by_temperature_and_by_the_lowest_inferred_layer(laid_out):
    """The stub of a model has a value for each: it is the temperature, or the number of inferred layers."""
    view = View(stub((8, 8, 1), None, (), model="ladder", scales="2x4,1x2", channels=4, encoder_blocks=1), "pca")
    view.model = SimpleNamespace(
        sizes=view.model.sizes,
        warmer=lambda n, temperature, noise: np.full((n, 1), temperature),
        mixed=lambda images, kept, noise: np.full((len(images), 1), kept),
    )
    view.decoded = lambda z: np.ones((8, 8, 1)) * z[:, :, None, None]
    grid, rows = run_figures.draw_temperatures(view)
    assert rows == ["1", "0.8", "0.6", "0.4"] and grid[:, 0, 0, 0, 0].tolist() == pytest.approx([1, 0.8, 0.6, 0.4])
    grid, rows = run_figures.draw_layers(view)
    assert rows == ["image", "z1", "z2", "z3", "none"] and grid[1:, 0, 0, 0, 0].tolist() == [3, 2, 1, 0]


def test_rates_of_layers_are_beside_their_names():
    run = stub((8, 8, 1), None, (), model="ladder", scales="2x4,1x2", channels=4, encoder_blocks=1)
    run.history = {f"val_rate_{layer}": np.array([9.0, layer]) for layer in (3, 2, 1)} | {"epoch": np.array([1.0, 2.0])}
    left, right = curves.layerrates(View(run, "pca")).axes
    assert [(line.get_label(), line.get_ydata()[-1]) for line in left.lines] == [("3", 3), ("2", 2), ("1", 1)]
    assert texts(right.get_yticklabels()) == ["3", "2", "1"] and [bar.get_width() for bar in right.patches] == [3, 2, 1]


def test_the_second_density_is_the_prior_s_and_the_first_that_of_encoded_images(views):
    view = views["vamp2"]
    aggregate, prior = view.densities
    at = np.stack([prior.x[[10, 50]], prior.y[[20, 60]]], axis=1)
    np.testing.assert_allclose(prior.log_p[[20, 60], [10, 50]], view.model.prior().log_prob(at), atol=1e-4)
    q = view.model.posterior(view.run.images("train"))
    each = np.asarray([q.log_prob(np.tile(one, (len(q.mean), 1)).astype("float32")) for one in at], "float64")
    expected = scipy.special.logsumexp(each, axis=1) - np.log(each.shape[1])
    np.testing.assert_allclose(aggregate.log_p[[20, 60], [10, 50]], expected, atol=1e-3)


@pytest.mark.parametrize("name", ["standard2", pytest.param("hvae3", marks=pytest.mark.slow)])
def test_weighted_draws_are_decoded_below_their_image(views, monkeypatch, name):
    view, index = views[name], views[name].spread(10)
    axes = run_figures.draw_reconweighted(view).axes[0]
    assert texts(axes.get_yticklabels()) == ["image", "mean of q(z|x)", "weighted mean", "resampled", "", ""]
    found = view.weighted(index)
    assert texts(axes.texts) == [f"ESS {ess:.1f}" for ess in found.ess] and found.resampled.shape[1] == 3
    factor = sheets.enlarged(np.zeros((6, 10, 8, 8, 1), np.float32)).shape[2] // 8
    top = sheets.starts(6, 8 * factor, (1, 3), sheets.WRITTEN)[0]
    picture = np.asarray(axes.images[0].get_array())
    latents_of_rows = (view.embedding.mean[view.rows_of(index[:1])], found.mean[:1], *found.resampled[0, :, None])
    for y, z in zip(top[1:], latents_of_rows, strict=True):
        tile = picture[y : y + 8 * factor : factor, : 8 * factor : factor]
        np.testing.assert_allclose(tile, view.decoded(z)[0, ..., 0], atol=1e-4)
    plane = latents.draw_embedding_weighted(view).axes[0]
    assert len(plane.collections[0].get_offsets()) == len(view.images)
    monkeypatch.setattr(latents, "MOST_WEIGHTED", 20)
    assert len(latents.draw_embedding_weighted(view).axes[0].collections[0].get_offsets()) == 20


@pytest.mark.parametrize(("model", "names"), [("vae", ["z"]), ("hvae", ["z2", "z1"])])
def test_units_are_counted_by_the_variances_of_their_means(model, names):
    view = View(stub((8, 8, 1), None, (), latent_dim=6, model=model), "pca")
    variances = np.array([0.0, 1.0, 0.0099, 0.0101, 2.0, 3.0])
    means = np.where(np.arange(24) % 2, 1, -1)[:, None] * np.sqrt(variances) + 5
    view.embedding = view.embedding._replace(mean=means)
    axes = latents.draw_activeunits(view).axes[0]
    active = [["z: 4 of 6 active"], ["z2: 1 of 3 active", "z1: 3 of 3 active"]][len(names) - 1]
    assert view.layer_names == names
    assert texts(axes.get_legend().get_texts()) == [*active, "variance 0.01: active above"]
    bars = np.array([(bar.get_x(), bar.get_height()) for bars in axes.containers for bar in bars])
    assert bars[:, 1].sum() == 6 and bars[bars[:, 0] > np.log(0.01) - 1e-9, 1].sum() == 4


@pytest.mark.parametrize("name", ["standard2", "hvae3"])
def test_snapshots_are_embedded_in_one_plane(views, tmp_path, name):
    view = View(experiment.load(shutil.copytree(views[name].run.path, tmp_path / "run")), "pca")
    folder = view.run.path / "snapshots"
    folder.mkdir()
    for number, epoch in enumerate((1, 16, 30)):
        model = models.build(view.config, (8, 8, 1), from_data=noise(12, 8, 8, 1)) if number < 2 else view.model
        save_weights(model, folder / f"epoch{epoch:09d}.safetensors")
    (figure,) = [one for one in run_figures.FIGURES if one.name == "snapshots"]
    assert figure.applies(view) and not figure.applies(views[name])
    panels = figure.draw(view).axes
    assert [axes.get_title("left") for axes in panels] == ["epoch 1", "epoch 16", "epoch 30"]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1
    plane = latents.flattened(view, view.embedding.mean)[0][: len(view.images)]
    shown = np.asarray(panels[2].collections[0].get_offsets())
    np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(plane, axis=0), rtol=1e-3, atol=1e-4)
    assert np.abs(np.sort(shown, axis=0) - np.sort(panels[0].collections[0].get_offsets(), axis=0)).max() > 0.01


def test_contours_come_from_the_models_prior(views):
    density = views["vamp2"].density
    corner = np.array([[density.x[-1], density.y[0]]], "float32")
    np.testing.assert_allclose(density.log_p[0, -1], numpy(views["vamp2"].model.prior().log_prob(corner))[0], rtol=1e-4)
    assert views["hvae3"].density is None


def test_lines_begin_and_end_at_reconstructions(views):
    view = views["hvae3"]
    axes = latents.draw_interpolations(view).axes[0]
    assert texts(axes.get_xticklabels()) == ["image", "0", "", "0.25", "", "0.5", "", "0.75", "", "1", "image"]
    factor = sheets.enlarged(np.zeros((10, 11, 8, 8, 1), np.float32)).shape[2] // 8
    picture, start = np.asarray(axes.images[0].get_array()), 8 * factor + sheets.BREAK
    first = view.images[latents.pairs(view.examples)[0]]
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
    assert texts(axes.get_yticklabels()) == ["test images", "standard", "vamp"] and len(axes.get_xticks()) == 20
    labels = views["vamp2"].split.labels
    chosen = [row[0] for row in views["vamp2"].examples]
    assert sorted(labels[chosen]) == list(range(10))
    np.testing.assert_array_equal(members[0].originals, views["vamp2"].split.grey(chosen))


# ---------------------------------------------------------------------------------------------- other data, bad input


@pytest.mark.filterwarnings("error:You are using a softmax")
def test_one_pseudo_input_has_a_use():
    run = stub((8, 8, 1), None, (), latent_dim=2, prior="vamp", num_pseudo_inputs=1)
    run.model = models.build(run.config, (8, 8, 1), from_data=noise(1, 8, 8, 1))
    assert style.rendered(scores.draw_pseudouse(View(run, "pca"))).startswith(b"\x89PNG")


def test_the_use_of_pseudo_inputs_is_shown_with_both_ends():
    run = stub((8, 8, 1), None, (), latent_dim=2, prior="vamp", num_pseudo_inputs=5)
    run.model = models.build(run.config, (8, 8, 1), from_data=noise(5, 8, 8, 1))
    view = View(run, "pca")
    view.shares = np.array([0.00004, 0.3, 0.5, 0.04996, 0.15])
    steps, *panels = scores.draw_pseudouse(view).axes
    (stairs,) = steps.patches
    np.testing.assert_allclose(stairs.get_data().values, 100 * np.sort(view.shares)[::-1])
    assert steps.get_ylabel() == "share of the test images (%)"
    assert steps.get_title("left") == "in use: 3.1 of 5 (perplexity)"
    words = ["50 %", "30 %", "", "", "< 0.01 %", "5 %", "", ""]
    assert [axes.get_xlabel() for axes in panels] == words
    np.testing.assert_array_equal(panels[2].images[0].get_array(), view.decoded(view.components[[2]])[0, ..., 0])


@pytest.mark.parametrize("projection", latents.PROJECTIONS)
@pytest.mark.parametrize("means", [np.ones((1, 5)), np.ones((40, 5))], ids=["one", "equal"])
def test_latents_that_show_no_plane_lie_on_the_first_two_axes(projection, means):
    view = SimpleNamespace(components=np.zeros((3, 5)), projection=projection, embedding=SimpleNamespace(mean=means))
    view.latent_names = ["z3", "z2", "z1[0]", "z1[1]", "z1[2]"]
    both, names, caption = latents.flattened(view, means)
    np.testing.assert_array_equal(both, np.concatenate([means, view.components])[:, :2])
    assert names == ["z3", "z2"] and caption == "the first two of 5 dimensions"


def test_t_sne_embeds_images_and_pseudo_inputs_jointly():
    points = np.concatenate([noise(12, 3), noise(12, 3) + 50])
    with threadpool_limits(1):  # threads of t-SNE wait for one another where cores are shared
        plane, names, caption = latents.tsne(points, points[:20])
    assert plane.shape == (24, 2) and names == ("t-SNE 1", "t-SNE 2") and caption.endswith("embedded jointly")
    assert np.linalg.norm(plane[:12].mean(axis=0) - plane[12:].mean(axis=0)) > plane[:12].std()


def test_umap_embeds_jointly_by_its_package_or_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plot.main([str(tmp_path), "--projection", "umap"]) == 2
    said = "error: --projection umap needs umap-learn: pip install -r requirements/umap.txt\n"
    assert capsys.readouterr().err == said and (ROOT / "requirements" / "umap.txt").is_file()
    asked = []

    def made(**options):
        asked.append(options)
        return SimpleNamespace(fit_transform=lambda points: points[:, :2] + 1)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=made))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "found")
    latents.check("umap")
    points = noise(12, 3)
    plane, names, caption = latents.PROJECTIONS["umap"](points, points[:7])
    np.testing.assert_array_equal(plane, points[:, :2] + 1)
    assert (names, caption) == (("UMAP 1", "UMAP 2"), "embedded jointly")
    assert asked == [{"n_neighbors": 11, "random_state": 0, "n_jobs": 1}]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(((28, 20, 1), np.arange(24) % 3, ("a", "b", "c"), HVAE, "pca"), marks=pytest.mark.slow),
        pytest.param(((12, 4, 1), np.arange(24) % 2, ("a", "b"), VAMP, "tsne"), marks=pytest.mark.slow),
        ((32, 32, 3), None, (), {"latent_dim": 2, "prior": "vamp", "binarize": "none"}, "pca"),
        ((8, 8, 1), np.arange(24) // 2, tuple("abcdefghijkl"), {"latent_dim": 1}, "tsne"),
    ],
    ids=["wide", "narrow", "colour", "many classes"],
)
def test_any_shape_and_any_classes_can_be_drawn(tmp_path, monkeypatch, kind):
    shape, labels, names, settings, projection = kind
    monkeypatch.setattr(sheets, "SHEET_PIXELS", (300, 300))
    run = stub(shape, labels, names, **settings)
    with small(), threadpool_limits(1):  # as above
        one = run_figures.draw_run(run, plot.Output(tmp_path), projection)
    expected = 9 + 2 * run.config.has_pseudo_inputs + (run.config.latent_dim == 2)
    assert len(list(tmp_path.iterdir())) == expected
    assert one.samples.shape == (32, *shape) and one.reconstructions.shape == one.originals.shape


def test_all_goes_to_out_where_that_is_given(runs, tmp_path, capsys, monkeypatch):
    keep(monkeypatch, "input", "samples")
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
        View(run, "pca").embedding  # noqa: B018


def test_a_grid_without_a_run_that_can_be_drawn_is_refused(tmp_path, capsys):
    assert plot.main(["--gs_key", "none", "--runs_dir", str(tmp_path)]) == 2
    assert "holds no run with weights; train it with --gs_key none" in capsys.readouterr().err


def test_a_projection_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        plot.main(["run", "--projection", "mds"])
    assert exit.value.code == 2 and "mds" in capsys.readouterr().err
