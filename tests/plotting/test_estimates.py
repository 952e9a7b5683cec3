"""Figures of p(z|x) in the latent plane, and of log p(x) and its estimates."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from conftest import first_on_both, slow_on_jax
from linear_models import IMAGES, NOISE, WEIGHTS, Linear, standard
from made import evaluation, keep, small, stub, texts

import experiment
import plot
from evaluation import estimators
from evaluation.latents import joint_of
from experiment.config import UserError
from plotting import comparisons, posteriors, run_figures, scores, style
from plotting.view import View

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(
    ("floats", "expected"),  # of MNIST, CIFAR-10 and colour images of 64x64 and 256x256, with --network_size 4
    [
        (60_368, (6, 50, 400, 500)),
        (180_224, (6, 50, 200, 500)),
        (720_896, (2, 25, 100, 372)),
        (11_534_336, (1, 25, 25, 23)),
    ],
)
def test_a_costly_decoder_decodes_fewer_points_of_fewer_images(floats, expected):
    _, coarse, finest, rows = effort = posteriors.Effort.of(floats)
    assert tuple(effort) == expected
    assert finest**2 * floats <= posteriors.WORK and rows * floats <= posteriors.AT_ONCE
    density = posteriors.located(gaussian((0, 0), 0.1), [np.array([[-4.0, -4], [4, 4]])], coarse, finest)
    assert len(density.x) <= finest


def test_how_long_it_takes_is_said_beforehand(monkeypatch, capfd):
    run = stub((8, 8, 1), None, (), latent_dim=2)
    joint = SimpleNamespace(on=lambda arrays, rows: [np.zeros(rows)])
    said = f"{run.path}: p(z|x) of 6 images may take 0 s; name other figures with --figures to leave it out\n"
    for long, expected in ((10, ""), (0, said)):
        monkeypatch.setattr(posteriors, "LONG", long)
        posteriors.Effort.of(1).announce(View(run, "pca"), joint)
        assert capfd.readouterr().err == expected


def test_no_more_images_are_announced_than_there_are(monkeypatch):
    def announced(effort, *_):
        raise UserError(f"{effort.images} images")

    monkeypatch.setattr(posteriors.Effort, "announce", announced)
    view = View(stub((8, 8, 1), None, (), latent_dim=2), "pca")
    view.examples = view.examples[:1, :2]
    with pytest.raises(UserError, match=r"^2 images$"):
        posteriors.draw_posterior(view)


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
    row = posteriors.image_posterior(View(run, "pca"), 4, joint_of(run.model), posteriors.Effort.of(1))
    mean = IMAGES[4].reshape(6) @ run.model.to_mean
    (points,) = row.points.values()
    sd = np.exp(run.model.logvar / 2) / 1.5
    error = sd / np.sqrt(row.ess)
    assert (np.abs(points.mean(axis=0) - mean) < 5 * error).all()
    assert 0.05 * 5000 < row.ess < 0.6 * 5000
    grid = np.exp(row.exact.log_p - row.exact.log_sum()) * np.diff(row.exact.x[:2]) * np.diff(row.exact.y[:2])
    exact = [grid.sum(axis=0) @ row.exact.x, grid.sum(axis=1) @ row.exact.y]
    np.testing.assert_allclose(exact, mean, atol=0.01)
    assert row.exact.log_sum() == pytest.approx(exact_log_px(IMAGES[4]), abs=0.01) and row.kl > 0.5
    inside = (row.limits[0] < points) & (points < row.limits[1])
    assert inside.mean() > 0.98 and (row.limits[0] < mean).all() and (mean < row.limits[1]).all()


def exact_log_px(image):
    """log p(x) of the linear model with a standard prior."""
    covariance = WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(6)
    return scipy.stats.multivariate_normal(np.zeros(6), covariance).logpdf(image.ravel())


@slow_on_jax
@pytest.mark.keras
@pytest.mark.parametrize("settings", first_on_both({"objective": "lmcvae"}, {"model": "hvae", "prior": "vamp"}))
def test_posteriors_stand_in_rows_over_the_same_plane(settings):
    run = stub((8, 8, 1), np.arange(24) % 3, ("a", "b", "c"), latent_dim=2, **settings)
    with small():
        figure = posteriors.draw_posterior(View(run, "pca"))
    ends = "objective" in settings
    rows = np.reshape(figure.axes, (2, 4 + ends))
    heads = [axes.get_title("left").split("\n")[0] for axes in rows[0, 1:]]
    assert heads == ["p(z|x)", "q(z|x)", "q(z|x), resampled", "ends of chains"][: 3 + ends]
    assert [axes.get_xlabel() for axes in rows[:, 0]] == ["a", "b"]
    across, upward = ("z2", "z1") if "model" in settings else ("z[0]", "z[1]")
    assert {axes.get_ylabel() for axes in rows[:, 1]} == {upward}
    assert {axes.get_xlabel() for axes in rows[-1, 1:]} == {across}
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
        posteriors.draw_posterior(View(run, "pca"))


# ---------------------------------------------------------------------------------------------- log p(x)


def scored(labels, names, index, log_px, **settings):
    """A View of a stub with that evaluation."""
    run = stub((8, 8, 1), labels, names, latent_dim=3, **settings)
    run.evaluation = {"test": evaluation(index, log_px)}.get
    return View(run, "pca")


def test_log_px_is_shown_over_all_by_class_and_at_both_ends():
    index, log_px = np.array([2, 23, 0, 5, 7, 10, 4, 1, 13, 16, 20]), -np.array([5.0, 1, 9, 3, 8, 2, 7, 4, 11, 6, 10])
    view = scored(np.arange(24) % 3, ("cat", "dog", "eel"), index, log_px)
    histogram, boxes, *ends = scores.draw_likelihood(view).axes
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
    figure = scores.draw_likelihood(scored(None, (), np.arange(count), np.linspace(-5, -4, count)))
    assert len(figure.axes) == 1 + 2 * max(1, count // 2)
    assert sum(len(axes.images) for axes in figure.axes) == 2 * (count // 2)
    assert len(style.rendered(figure)) > 3000


def test_no_likelihood_is_drawn_without_a_score_of_these_images(tmp_path, monkeypatch, capsys):
    keep(monkeypatch, "likelihood")
    view = scored(None, (), np.arange(3) + 22, -np.arange(3.0))
    run_figures.draw_run(view.run, plot.Output(tmp_path), "pca")
    assert not list(tmp_path.glob("*.png")) and capsys.readouterr().err.endswith("run evaluate.py first\n")
    view = scored(None, (), np.arange(3) + 21, -np.arange(3.0))
    run_figures.draw_run(view.run, plot.Output(tmp_path), "pca")
    assert len(list(tmp_path.glob("*_likelihood.png"))) == 1 and capsys.readouterr().err == ""


def test_estimates_by_groups_have_the_known_mean_and_spread():
    """Log-weights N(m, s^2): the mean of one is m, that of the log of a mean of many comes to m + s^2 / 2."""
    s, rng = 0.5, np.random.default_rng(0)
    log_w = np.array([-3.0, -1.0])[:, None] + s * rng.normal(size=(2, max(scores.COUNTS)))
    values = scores.by_samples(log_w)
    assert values.shape == (len(scores.COUNTS), 2)
    np.testing.assert_allclose(values[0], [log_w.mean(), s / np.sqrt(2)], rtol=0.05)
    mean, error = values[-1]
    assert abs(mean - (-2 + s**2 / 2)) < 4 * error
    relative = np.sqrt(np.expm1(s**2))  # of a weight's standard deviation to its mean
    counts = np.array(scores.COUNTS[3:8])  # of more, there are few groups
    np.testing.assert_allclose(values[3:8, 1], relative / np.sqrt(2 * counts), rtol=0.5)
    assert error == pytest.approx(relative / np.sqrt(2 * 2000), rel=0.15)
    assert (np.diff(values[:6, 0]) > 0).all()


@pytest.mark.keras
def test_estimates_rise_to_the_integral_and_those_from_q_later(monkeypatch):
    monkeypatch.setattr(scores, "integrated", lambda view, images: np.mean([exact_log_px(image) for image in images]))
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run.model, run.images = Beside(standard()), lambda name: IMAGES
    whole, end = scores.draw_estimates(View(run, "pca")).axes
    q, fitted, integral = whole.lines
    truth = integral.get_ydata()[0]
    assert whole.get_xscale() == "log" and q.get_xdata().tolist() == list(scores.COUNTS)
    assert (whole.get_xlabel(), whole.get_ylabel()) == ("samples S per image", "log p(x) (nats)")
    assert q.get_label().startswith("q(z|x): ") and fitted.get_label().startswith("fitted to p(z|x): ")
    assert len(whole.collections) == len(end.collections) == 2 and "11 test images" in whole.get_title("left")
    assert q.get_ydata()[0] < truth - 1 and (np.diff(q.get_ydata()[:5]) > 0).all()
    assert abs(q.get_ydata()[-1] - truth) < 0.1 and abs(fitted.get_ydata()[-1] - truth) < 0.05
    bottom, top = end.get_ylim()
    assert bottom < truth < top and end.get_xlim()[0] > 10


def test_estimates_are_drawn_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    keep(monkeypatch, "estimates")
    monkeypatch.setattr(scores, "COUNTS", (1, 2, 5, 10))
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run_figures.draw_run(run, plot.Output(tmp_path), "pca")
    assert not list(tmp_path.glob("*.png"))
    run_figures.draw_run(run, plot.Output(tmp_path), "pca", with_costly=True)
    assert len(list(tmp_path.glob("*_estimates.png"))) == 1 and capsys.readouterr().err == ""
    view = View(run, "pca")
    lines = scores.draw_estimates(view).axes[0].lines
    assert lines[-1].get_label() == f"quadrature: {style.decimals(scores.integrated(view, view.images))}"
    deep = scores.draw_estimates(View(stub((8, 8, 1), None, (), latent_dim=3), "pca"))
    assert len(deep.axes[0].lines) == 2
    monkeypatch.setattr(estimators, "MOST_FITTED", 2)
    wide = scores.draw_estimates(View(stub((8, 8, 1), None, (), latent_dim=3), "pca"))
    assert [line.get_label().split(":")[0] for line in wide.axes[0].lines] == ["q(z|x)"]


def test_estimates_of_a_pixel_network_are_left_out_and_those_of_nan_refused(tmp_path, monkeypatch, capsys):
    keep(monkeypatch, "estimates")
    run = stub((8, 8, 1), None, (), latent_dim=2)
    run.config = experiment.Config(data_set="digits", model="hvae", network="pixel")
    monkeypatch.setattr(comparisons, "drawn_of", lambda *view: None)
    run_figures.draw_run(run, plot.Output(tmp_path), "pca", with_costly=True)
    assert not list(tmp_path.glob("*.png")) and "for --network pixel" in capsys.readouterr().err
    run.model.q_z.mean.bias.assign(np.full(2, np.nan, "float32"))
    with pytest.raises(UserError, match="test image 0 is not finite"):
        scores.draw_estimates(View(run, "pca"))
