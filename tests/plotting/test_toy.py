"""The ring: its model and its exact log p(x), what a short training makes of it, and the figure."""

import numpy as np
import pytest
from conftest import log_joint
from keras.random import SeedGenerator

import plot
from models import objectives
from plotting import style, toy


def test_log_px_and_the_posterior_are_those_of_the_model():
    assert toy.log_px() == pytest.approx(-3.1328, abs=1e-4)
    axis = np.linspace(-5, 5, 801)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    total = np.log(np.exp(toy.log_joint(grid)).sum() * (axis[1] - axis[0]) ** 2)
    assert total == pytest.approx(toy.log_px(), abs=1e-4)
    model, z = toy.Ring(toy.CASES["VAE"]), np.float32([[0.3, -1.9], [2.0, 0.1]])
    x = np.full((2, 1, 1, 1), toy.X0, "float32")
    np.testing.assert_allclose(log_joint(model, x, z), toy.log_joint(z), rtol=1e-4)


def test_data_is_that_of_the_model():
    x = toy.data()
    assert x.shape == (toy.IMAGES, 1, 1, 1) and np.array_equal(x, toy.data())
    expected = 2 * np.pi * (np.sqrt(np.pi / 2) + 2)  # |z| is Rayleigh's
    assert abs(x.mean() - expected) < 4.5 * x.std() / np.sqrt(toy.IMAGES)


VARIED = tuple(name for name in toy.CASES if name != "VAE")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in VARIED)) for name in toy.CASES]
)
def test_a_short_training_raises_the_bound_and_its_draws_have_the_radius(name):
    _, untrained = toy.fit(name, epochs=0)
    z, bound = toy.fit(name, epochs=6)
    assert untrained + 0.05 < bound < toy.log_px() + 0.05
    assert z.shape == (toy.DRAWS, 2)
    if "IWAE" not in name:  # whose q is wide on purpose
        assert abs(np.median(np.linalg.norm(z, axis=1)) - 2) < 0.4
    if "MCVAE" in name:  # whose chains end on the whole ring
        angles = np.arctan2(*z.T)
        assert np.histogram(angles, 6, (-np.pi, np.pi))[0].min() > 0.05 * toy.DRAWS


def test_draws_of_chains_are_where_they_end():
    model, x = toy.Ring(toy.CASES["L-MCVAE, 5 steps"]), np.full((50, 1, 1, 1), toy.X0, "float32")
    path, z = objectives.path_of(model, x, 1, SeedGenerator(1))
    drawn = model.objective.draw(model, x, SeedGenerator(1))
    assert drawn.shape == (50, 2) and np.abs(np.asarray(drawn) - np.asarray(z[0])).min() > 0
    closer = np.asarray(path.log_end(drawn[None])[0]).mean() - np.asarray(path.log_end(z)[0]).mean()
    assert closer > 1


def test_the_figure_has_the_posterior_and_a_panel_of_draws_each():
    fitted = {f"case {i}": (np.random.default_rng(i).normal(size=(20, 2)), -4.0 - i) for i in range(4)}
    figure = toy.posteriors(fitted)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "p(z|x)\nlog p(x) = -3.13", *(f"case {i}\nbound {-4.0 - i:.2f}" for i in range(4)),
    ]  # fmt: skip
    assert all(len(axes.lines[0].get_xdata()) == 20 and len(axes.collections) == 1 for axes in figure.axes[1:])
    assert style.rendered(figure).startswith(b"\x89PNG")


def test_plot_draws_it_into_the_folder_that_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toy, "fit", lambda name: (np.zeros((5, 2)), -5.0))
    assert plot.main(["--toy_posteriors", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "toy_posteriors.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(tmp_path / "toy_posteriors.png")
    assert plot.main(["--toy_posteriors", str(tmp_path)]) == 2
    assert "--toy_posteriors does not go with RUN, because it draws an example of its own" in capsys.readouterr().err
    assert plot.main(["--toy_posteriors", "--projection", "pca"]) == 2
    assert "--toy_posteriors does not go with --projection" in capsys.readouterr().err
    assert plot.main(["--toy_posteriors", "--report"]) == 2
    assert (
        "--toy_posteriors does not go with --report, because it draws an example of its own" in capsys.readouterr().err
    )
