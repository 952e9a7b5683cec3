"""groups.py: which runs are compared, and what the figures that compare them show."""

from pathlib import Path

import numpy as np
import pytest

import experiment
from experiment.config import UserError
from plotting import comparisons, style
from plotting.output import Output, os


def history(*elbos):
    """A history of these validation ELBOs, with a rate of 2."""
    elbo = np.array(elbos)
    return {
        "epoch": np.arange(1.0, len(elbo) + 1),
        "val_elbo": elbo,
        "val_rate": np.full(len(elbo), 2.0),
        "val_distortion": -2 - elbo,
    }


def member(*elbos, shade=0.5, **settings):
    """A Drawn with this history, whose pictures are all of one shade."""
    config = experiment.Config(**({"data_set": "digits", "network_size": 1.0} | settings))
    pictures = np.full((32, 8, 8, 1), shade, np.float32)
    return comparisons.Drawn(
        Path(config.training_id), config, history(*elbos or (-3.0,)), *[pictures[:10]] * 2, pictures, note=""
    )


def texts(labels):
    """The words of matplotlib's text objects."""
    return [label.get_text() for label in labels]


def test_only_runs_that_can_be_compared_stand_together():
    members = [member(), member(prior="vamp"), member(latent_dim=3), member(data_set="mnist"), member(binarize="none")]
    found = comparisons.grouped(members)
    assert [group.name for group in found] == ["digits_ldim2_factor1"]
    assert found[next(iter(found))] == members[:2]


def test_the_kept_epoch_is_the_best_of_what_was_trained():
    assert member(-9.0, -4.0, -5.0).best == 1
    bounded = member(-9.0, -4.0, -5.0, objective="iwae")
    bounded.history["val_bound"] = np.array([-9.0, -4.0, -1.0])
    assert bounded.best == 2


def test_curves_are_means_over_seeds_in_bands_with_a_dot_for_each_seed():
    seeds = [member(-9.0, -5.0, -6.0, -7.0, seed=0), member(-11.0, -9.0, -4.0, seed=1)]  # the second one stopped early
    figure = comparisons.draw_curves([*seeds, member(-8.0, -7.0, -6.0, model="hvae")])
    copies = comparisons.draw_curves([member(-9.0, -5.0), member(-8.0, -6.0)])  # of one seed
    assert [text.get_text() for text in copies.legends[0].get_texts()] == ["2 runs"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["ELBO (nats)", "rate (nats)", "distortion (nats)"]
    axes = figure.axes[0]
    mean, first, second, other, *dots = axes.lines
    np.testing.assert_allclose(mean.get_ydata(), [-10, -7, -5])
    assert [line.get_xydata().tolist() for line in (first, second)] == [[[2, -5]], [[3, -4]]]
    assert mean.get_label() == "vae, 2 seeds" and other.get_label() == "hvae" and len(dots) == 1
    bottom, top = axes.get_ylim()
    assert bottom < -10 - np.sqrt(2) and top > -4  # bands and dots are whole
    (band,) = axes.collections  # of one seed there is none
    ends = band.get_paths()[0].get_extents()
    np.testing.assert_allclose([ends.y0, ends.y1], [-10 - np.sqrt(2), -5 + np.sqrt(2)], atol=1e-6)
    assert texts(figure.legends[0].get_texts()) == ["vae, 2 seeds", "hvae"]


def test_priors_stand_side_by_side_and_a_missing_one_stays_white():
    shades = {("vae", "standard"): 0.1, ("vae", "vamp"): 0.2, ("hvae", "vamp"): 0.4}
    members = [member(model=model, prior=prior, shade=shade) for (model, prior), shade in shades.items()]
    assert comparisons.has_several_priors(members) and not comparisons.has_several_priors(members[1:])
    axes = comparisons.draw_priors(members).axes[0]
    assert texts(axes.get_xticklabels()) == ["standard", "vamp"] and texts(axes.get_yticklabels()) == ["vae", "hvae"]
    picture = np.asarray(axes.images[0].get_array())
    height, width = (side // 4 for side in picture.shape)
    corners = picture[[height, height, -height, -height], [width, -width, width, -width]]
    np.testing.assert_allclose(corners, [0.1, 0.2, 1.0, 0.4])


def test_samples_of_one_model_have_no_names_beside_them():
    members = [member(prior=prior, num_pseudo_inputs=count) for prior, count in (("standard", 500), ("vamp", 12))]
    axes = comparisons.draw_priors(members).axes[0]
    assert texts(axes.get_xticklabels()) == ["standard", "vamp"] and not "".join(texts(axes.get_yticklabels()))


def test_every_figure_says_in_a_sentence_what_it_shows(tmp_path):
    members = [member(-9.0, -5.0), member(-8.0, -7.0, prior="vamp")]
    out = Output(tmp_path, "svg")
    for name, draw in comparisons.FIGURES.items():
        out.draw(Path("runs"), name, draw, members)
    assert [shown.name for shown in out.shown[Path("runs")]] == [f"{name}.svg" for name in comparisons.FIGURES]
    for shown in out.shown[Path("runs")]:
        assert shown.words.endswith(".") and len(shown.words) > 30
        assert (tmp_path / shown.name).read_bytes() == shown.content


@pytest.mark.parametrize("kind", style.FORMATS)
def test_a_file_is_the_same_every_time(kind):
    first, second = (
        style.rendered(comparisons.draw_curves([member(-9.0, -5.0), member(model="hvae")]), kind) for _ in range(2)
    )
    assert first == second and first.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[kind])


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may all
    with pytest.raises(UserError, match="Permission denied; name another folder with --out"):
        Output(tmp_path)
