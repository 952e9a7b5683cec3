"""comparisons.py: which runs are compared, and what the figures that compare them show."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from made import evaluation, texts

import experiment
from experiment.config import UserError
from plotting import comparisons, planes, run_figures, style
from plotting.output import Output, os


def history(*elbos):
    """A history of these validation ELBOs, half a nat below those of training, with a rate of 2."""
    elbo = np.array(elbos)
    return {
        "epoch": np.arange(1.0, len(elbo) + 1),
        "val_elbo": elbo,
        "train_elbo": elbo + 0.5,
        "val_rate": np.full(len(elbo), 2.0),
        "val_distortion": -2 - elbo,
    }


def member(*elbos, shade=0.5, **settings):
    """A Drawn with this history, whose pictures are all of one shade."""
    config = experiment.Config(**({"data_set": "digits", "network_size": 1.0} | settings))
    pictures = np.full((32, 8, 8, 1), shade, np.float32)
    about = (history(*elbos or (-3.0,)), *[pictures[:10]] * 2, pictures)
    return comparisons.Drawn(Path(config.training_id), config, *about, None, None, note="")


def test_only_runs_that_can_be_compared_stand_together():
    members = [member(), member(prior="vamp"), member(latent_dim=3), member(data_set="mnist"), member(binarize="none")]
    first, second, *others = [comparisons.group_of(one.config) for one in members]
    assert first == second == "digits_ldim2_factor1" and len({first, *others}) == 4
    drawn = []
    comparisons.draw_groups(members, SimpleNamespace(draw=lambda *found, subject: drawn.append((found[2], subject))))
    assert drawn == [(members[:2], first)] * 4


def normal(x, y, mean, sd):
    """The Density of an isotropic Gaussian around (mean, 0)."""
    squared = (x - mean) ** 2 + y[:, None] ** 2
    return planes.Density(x, y, -squared / (2 * sd**2) - 2 * np.log(sd))


@pytest.mark.parametrize("mean, sd", [(0.0, 1.0), (0.0, 2.0), (3.0, 1.0)])
def test_holes_are_what_a_prior_has_outside_of_the_aggregated_posterior(mean, sd):
    """A Gaussian has the mass of a noncentral chi-square outside of the disc that holds 95 % of N(0, I)."""
    x, y = np.linspace(-10, 13, 231), np.linspace(-10, 10, 201)
    aggregate, prior = normal(x, y, 0.0, 1.0), normal(x, y, mean, sd)
    radius = scipy.stats.chi2(2).ppf(comparisons.INSIDE)
    expected = scipy.stats.ncx2(2, (mean / sd) ** 2 + 1e-12).sf(radius / sd**2)
    assert prior.outside(aggregate, comparisons.INSIDE) == pytest.approx(expected, abs=0.01)


def test_densities_are_drawn_of_runs_that_have_a_plane():
    (figure,) = [one for one in comparisons.FIGURES if one.name == "densities"]
    one = normal(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61), 0.0, 1.0)
    members = [member(prior=prior)._replace(densities=(one, one)) for prior in ("standard", "vamp", "mog")]
    members.append(member(model="hvae"))
    assert figure.applies(members) and not figure.applies(members[2:])
    drawn = figure.draw(members)
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert titles == [f"{name}\n5% of p(z) in holes" for name in ("vae, standard", "vae, vamp", "vae, mog")]
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in drawn.axes} == {("z[0]", "z[1]")}
    assert texts(drawn.legends[0].get_texts()) == ["aggregated posterior", "prior (50, 80, 95 %)"]


def test_distributions_of_log_px_are_drawn_of_runs_with_scores():
    (figure,) = [one for one in comparisons.FIGURES if one.name == "likelihoods"]
    worse, better = -100.0 - np.arange(9.0), -90.0 - np.arange(5.0)
    members = [member(prior=prior) for prior in ("standard", "vamp", "mog")]
    for number, values in (0, worse), (2, better):
        members[number] = members[number]._replace(evaluation=evaluation(np.arange(len(values)), values))
    assert figure.applies(members) and not figure.applies(members[:2])
    (axes,) = figure.draw(members).axes
    for steps, line, values in zip(axes.patches, axes.lines, (better, worse), strict=True):
        shares, edges, _ = steps.get_data()
        assert np.sum(shares * np.diff(edges)) == pytest.approx(1) and set(line.get_xdata()) == {values.mean()}
        inside = np.digitize(values, edges[:-1]) - 1
        np.testing.assert_allclose(shares * np.diff(edges), np.bincount(inside, minlength=len(shares)) / len(values))
    minus = "\N{MINUS SIGN}"
    legend = [f"mog: {minus}92.00 ± 0.71 (test_is_S5_N9)", f"standard: {minus}104.00 ± 0.91 (test_is_S5_N9)"]
    assert texts(axes.get_legend().get_texts()) == legend and axes.get_xlabel() == "log p(x) (nats)"


def test_runs_without_a_difference_are_named_by_their_folders():
    names = [
        comparisons.names_of([first, second])
        for first, second in (
            (member(seed=1), member(seed=2)),
            (member(num_pseudo_inputs=1)._replace(path=Path("run")), member()._replace(path=Path("other"))),
            (member()._replace(path=Path("_a/run")), member()._replace(path=Path("b/run"))),
        )
    ]
    assert names[:2] == [["seed 1", "seed 2"], ["run", "other"]]
    assert names[2] == ["./_a/run", "b/run"]  # matplotlib leaves labels that begin with an underscore out of legends


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


def test_overlay_has_a_curve_for_each_run_the_best_first():
    figure = comparisons.draw_overlay([member(-9.0, -3.0, seed=1), member(-9.0, -2.5, seed=2)])
    minus = "\N{MINUS SIGN}"
    assert texts(figure.axes[1].get_legend().get_texts()) == [f"seed 2: {minus}2.50", f"seed 1: {minus}3.00"]
    assert figure.axes[0].get_ylabel() == "ELBO (nats)"
    for axes, title, more in zip(figure.axes, ("training", "validation"), (0.5, 0.0), strict=True):
        assert axes.get_title("left") == title
        lines = [line.get_ydata().tolist() for line in axes.lines if len(line.get_ydata()) == 2]
        assert lines == [[more - 9, more - 2.5], [more - 9, more - 3]]


def test_overlay_marks_the_kept_epoch_of_what_was_trained():
    """Not that of the best ELBO, where another bound was trained."""
    bounded = [member(-9.0, -4.0, -5.0, objective="iwae", seed=seed) for seed in (1, 2)]
    for one, last in zip(bounded, (-1.0, -0.5), strict=True):
        one.history["val_bound"] = np.array([-9.0, -4.0, last])
    bounded[1].history["val_elbo"][2] = -6.0
    legend = comparisons.draw_overlay(bounded).axes[1].get_legend()
    minus = "\N{MINUS SIGN}"
    assert texts(legend.get_texts()) == [f"seed 1: {minus}5.00", f"seed 2: {minus}6.00"]
    assert legend.get_title().get_text().strip() == "validation ELBO of the kept epoch (dot)"


@pytest.mark.parametrize("count", [1, 10, 11, 40, 41, 95])
def test_no_two_lines_look_alike(count):
    found = comparisons.lines_of(count)
    assert len({(str(colour), dash) for colour, dash in found}) == len(found) == count


def test_few_test_images_are_compared_with_as_many_samples_as_otherwise():
    members = [one._replace(originals=one.originals[:3], reconstructions=one.reconstructions[:3])
               for one in (member(), member(prior="vamp"))]  # fmt: skip
    assert style.rendered(comparisons.draw_comparison(members)).startswith(b"\x89PNG")


def test_the_steep_start_of_a_long_curve_does_not_flatten_the_rest():
    axes = comparisons.draw_overlay([member(-500.0, *np.linspace(-110, -100, 39))]).axes[0]
    assert -115 < axes.get_ylim()[0] < -105


def test_a_band_that_still_rises_is_whole():
    rising = -200 + 100 * np.linspace(0, 1, 100) ** 0.3
    axes = comparisons.draw_curves([member(*rising - 3, seed=0), member(*rising + 3, seed=1)]).axes[0]
    assert axes.get_ylim()[0] < rising[10] - 3 * np.sqrt(2)


def test_any_character_may_stand_in_a_label():
    members = [member(-9.0, -3.0)._replace(path=Path(name)) for name in ("m$x_{$/run", "$")]
    assert style.rendered(comparisons.draw_overlay(members)).startswith(b"\x89PNG")


def test_priors_stand_side_by_side_and_a_missing_one_stays_white():
    shades = {("vae", "standard"): 0.1, ("vae", "vamp"): 0.2, ("hvae", "vamp"): 0.4}
    members = [member(model=model, prior=prior, shade=shade) for (model, prior), shade in shades.items()]
    (applies,) = (figure.applies for figure in comparisons.FIGURES if figure.name == "priors")
    assert applies(members) and not applies(members[1:])
    axes = comparisons.draw_priors(members).axes[0]
    assert texts(axes.get_xticklabels()) == ["standard", "vamp"] and texts(axes.get_yticklabels()) == ["vae", "hvae"]
    picture = np.asarray(axes.images[0].get_array())
    height, width = (side // 4 for side in picture.shape)
    corners = picture[[height, height, -height, -height], [width, -width, width, -width]]
    np.testing.assert_allclose(corners, [0.1, 0.2, 1.0, 0.4])


def test_a_second_run_of_a_prior_is_left_out_with_a_word(capsys):
    members = [member(), member(prior="mog", num_pseudo_inputs=10), member(prior="mog", num_pseudo_inputs=100)]
    comparisons.draw_priors(members)
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"priors: {members[2].path} is left out, as another run has this prior"


def test_samples_of_one_model_have_no_names_beside_them():
    members = [member(prior=prior, num_pseudo_inputs=count) for prior, count in (("standard", 500), ("vamp", 12))]
    axes = comparisons.draw_priors(members).axes[0]
    assert texts(axes.get_xticklabels()) == ["standard", "vamp"] and not "".join(texts(axes.get_yticklabels()))


@pytest.mark.parametrize("setting", [{"num_couplings": 0}, {"coupling_width": 8}])
def test_settings_of_a_prior_do_not_part_it_from_others(setting):
    members = [member(prior="standard"), member(prior="flow", **setting)]
    assert texts(comparisons.draw_priors(members).axes[0].get_xticklabels()) == ["standard", "flow"]


def test_what_was_drawn_is_kept_with_its_caption(tmp_path):
    one = normal(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61), 0.0, 1.0)
    members = [member(-9.0, -5.0), member(-8.0, -7.0, prior="vamp")]
    scored = evaluation(np.arange(2), np.array([-3.0, -4.0]))
    members = [drawn._replace(densities=(one, one), evaluation=scored) for drawn in members]
    out = Output(tmp_path, "svg")
    for figure in comparisons.FIGURES:
        out.draw(Path("runs"), figure, members, subject="two")
    names = ("losshistory", "comparison", "curves", "priors", "densities", "likelihoods")
    assert [shown.name for shown in out.shown[Path("runs")]] == [f"two_{name}.svg" for name in names]
    for shown, figure in zip(out.shown[Path("runs")], comparisons.FIGURES, strict=True):
        assert shown.caption == figure.caption
        assert (tmp_path / shown.name).read_bytes() == shown.content


def test_every_figure_has_a_name_and_a_caption_of_its_own():
    figures = (*run_figures.FIGURES, *comparisons.FIGURES)
    assert len({one.name for one in figures}) == len({one.caption for one in figures}) == len(figures)
    assert all(one.caption[0].isupper() | one.caption.startswith("p(") and one.caption.endswith(".") for one in figures)


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
