"""The pictures of docs/results.md are those of its runs: what is trained and scored, and that all of it is shown."""

import json
import os
import re
import sys
from types import SimpleNamespace

import pytest

import experiment
import plot
import train
from benchmarks import readme_pictures, results_page
from experiment.config import UserError
from plotting import sheets
from runtime.command import STOPPED, Parser

START, END = (f"<!-- benchmarks/readme_pictures.py {words} here -->" for words in ("writes from", "wrote to"))
IMAGE = re.compile(r"!\[([^\]]*)\]\(<?([^)>]+)>?\)")


def arguments(*words):
    """The flags of plot.py."""
    parser = Parser(prog="plot.py")
    plot.add_arguments(parser)
    return parser.parse_args(["--readme", *words])


def test_the_page_shows_the_results():
    text = results_page.PAGE.read_text()
    assert results_page.replaced(text, "readme_pictures.py", readme_pictures.part()) == text


def test_without_sizes_the_runs_are_small_and_with_one_the_others_are_the_usual_ones():
    small = readme_pictures.configs_of(arguments())
    assert len(small) == 8 and small[0].path.name == "mnist_vae_standard_bs256_dim2_factor1.0_epochs10_lr0.001"
    full = readme_pictures.configs_of(arguments("--network_size", "16", "--epochs", "250"))
    assert full[3].path.name == "mnist_hvae_vamp_bs256_dim2_factor16.0_epochs250"
    assert full[-1].path.name == "fashionmnist_hvae_vamp_bs256_dim2_factor16.0_epochs250"
    words = ("--latent_dim=40", "--lr_schedule=cosine", "--beta_warmup=4", "--precision=mixed_bfloat16")
    name = readme_pictures.configs_of(arguments(*words))[1].path.name
    assert name == "mnist_vae_vamp_bs256_dim40_factor4.0_epochs250_schedulecosine_precisionmixed_bfloat16_warmup4"
    assert readme_pictures.configs_of(arguments("--latent_dim=40"))[0].network_size == 1


@pytest.mark.parametrize("words", ["run", "--gs_key=x", "--out=x", "--report", "--export=npz", "--explore"])
def test_it_takes_no_runs_and_no_other_place(words, monkeypatch, capsys):
    monkeypatch.setattr(os, "execv", None)
    assert plot.main([words, "--readme"]) == 2
    expected = "RUN" if words == "run" else words.split("=")[0]
    assert f"--readme does not go with {expected}, because" in capsys.readouterr().err


def test_its_sizes_go_with_it_alone(capsys):
    assert plot.main(["run", "--epochs", "3"]) == 2 and "--epochs 3 goes with --readme" in capsys.readouterr().err


def test_sizes_that_no_run_can_have_are_refused(capsys):
    assert readme_pictures.main(["--readme", "--epochs", "0"]) == 2
    assert "--epochs 0 must be at least 1" in capsys.readouterr().err


def test_a_training_that_ends_early_ends_all_of_it(monkeypatch):
    monkeypatch.setattr(train, "main", lambda words: STOPPED)
    assert readme_pictures.main(["--readme"]) == STOPPED


def test_plot_hands_over_to_the_program_with_the_same_flags(monkeypatch):
    handed = []
    monkeypatch.setattr(os, "execv", lambda program, words: handed.append((program, words)) or sys.exit(0))
    with pytest.raises(SystemExit):
        plot.main(["--readme", "--epochs", "3", "--hardware", "two cores", "--runs_dir", "here", "--device", "cpu"])
    ((program, words),) = handed
    assert (program, *words[:2]) == (sys.executable, sys.executable, str(readme_pictures.__file__))
    args = arguments(*words[3:])
    assert (args.epochs, args.hardware, args.runs_dir, args.device, args.lr) == (3, "two cores", "here", "cpu", None)


def test_the_program_ends_with_its_own_exit_code(script):
    done = script("plot.py", "--readme", "--epochs", "0")
    assert done.returncode == 2 and done.stderr == "error: --epochs 0 must be at least 1 and at most 2147483647\n"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Two small runs in the place of the eight, and a page, img/ and results of this test's own."""
    for module, name, value in (
        (readme_pictures, "DATA_SETS", ("digits",)),
        (readme_pictures, "MODELS", (("vae", "standard"), ("vae", "vamp"))),
        (readme_pictures, "MOST_IMAGES", 30),
        (readme_pictures, "IMG", tmp_path / "img"),
        (readme_pictures, "RESULTS", tmp_path / "results"),
        (results_page, "PAGE", tmp_path / "docs" / "results.md"),
        (sheets, "SHEET_PIXELS", (300, 300)),
    ):
        monkeypatch.setattr(module, name, value)
    (tmp_path / "results").mkdir()
    (tmp_path / "docs").mkdir()
    results_page.PAGE.write_text(f"above\n{START}\n{END}\n")
    return tmp_path


@pytest.mark.slow
def test_one_command_makes_what_is_missing_and_another_nothing(tiny, monkeypatch, capsys):
    flags = ["--readme", "--network_size", "0.25", "--epochs", "1", "--runs_dir", str(tiny / "runs")]
    assert readme_pictures.main([*flags, "--hardware", "a machine"]) == 0
    text = results_page.PAGE.read_text()
    shown = [path for _, path in IMAGE.findall(text)]
    assert sorted(shown) == sorted(f"../img/{path.name}" for path in (tiny / "img").iterdir())
    name = "digits_vae_vamp_bs256_dim2_factor0.25_epochs1"
    expected = {f"../img/{name}_{one}.png" for one in ("reconmanifold", "embedding_mean", "pseudouse")}
    assert expected | {"../img/digits_input.png", "../img/digits_ldim2_factor0.25_losshistory.png"} <= set(shown)
    (result,) = [json.loads(path.read_text()) for path in (tiny / "results").glob(f"readme_{name}.json")]
    assert f"| vae | vamp | {result['metrics']['log_px']:.2f} |" in text and "log p(x) is by quadrature" in text
    (base,) = (json.loads(path.read_text()) for path in (tiny / "results").glob("readme_digits_vae_standard_*.json"))
    gain, error = result["difference"]
    assert gain == pytest.approx(result["metrics"]["log_px"] - base["metrics"]["log_px"]) and error > 0
    assert base["difference"] is None and f" | {gain:+.2f} ± {error:.2g} | " in text
    assert "Hardware a: a machine." in text and "network size 0.25, 1 epochs" in text
    capsys.readouterr()

    monkeypatch.setattr("training.fit.train", None)  # nothing is left to train
    monkeypatch.setattr("evaluate.evaluate", None)  # or to score
    assert readme_pictures.main(flags) == 0
    assert results_page.PAGE.read_text() == text and capsys.readouterr().out.count("is finished already") == 2


def result(config, log_px):
    """A result file's content."""
    metrics = dict.fromkeys(("log_px_se", "log_px_se_images", "elbo", "rate", "distortion", "seconds"), 1.0)
    metrics |= {"log_px": log_px, "components_in_use": None, "doubtful": 0, "num_images": 9, "estimator": "quadrature"}
    metrics |= {"marginal_kl": 0.1, "active_units": [2], "units": [2], "precision": "float32"}
    settings = {"model": config.model, "prior": config.prior, "data_set": config.data_set}
    settings |= {name: getattr(config, name) for name in plot.README_SETTINGS}
    about = {"status": {"seconds": 60.0}, "note": "", "hardware": "here", "backend": "jax", "git_commit": None}
    return about | {"settings": settings, "metrics": metrics}


def write_results(folder, log_px, models, **settings):
    """Writes a result file for each of these models of the digits."""
    for model, prior in models:
        config = experiment.Config(data_set="digits", model=model, prior=prior, **settings)
        (folder / f"readme_{config.training_id}.json").write_text(json.dumps(result(config, log_px)))


def test_the_largest_complete_setting_is_shown(tiny):
    models = readme_pictures.MODELS
    with pytest.raises(UserError, match="no setting of which all 2 runs are there"):
        readme_pictures.part()
    write_results(tiny / "results", -150.0, models, network_size=1.0, epochs=10, lr=1e-3)
    write_results(tiny / "results", -140.0, models[:1], network_size=16.0, epochs=250)
    assert "-150.00" in readme_pictures.part() and "factor16" not in readme_pictures.part()
    write_results(tiny / "results", -140.0, models, network_size=16.0, epochs=250)
    shown = readme_pictures.part()
    assert "-140.00" in shown and "-150.00" not in shown and "../img/digits_ldim2_factor16_losshistory.png" in shown
    assert "network size 16, 250 epochs, learning rate 0.0001, 1.0 min; log p(x) -140.00" in shown


def test_each_number_of_latents_has_a_part_of_its_own(tiny):
    models, slow = readme_pictures.MODELS, {"lr_schedule": "cosine", "beta_warmup": 4, "precision": "mixed_bfloat16"}
    write_results(tiny / "results", -90.0, models, latent_dim=40, network_size=1.0, **slow)
    write_results(tiny / "results", -150.0, models, latent_dim=2, network_size=4.0)
    two, forty = readme_pictures.part().split("**digits, 40 latents.**")
    assert two.startswith("**digits, 2 latents.**") and "-150.00" in two and "-90.00" not in two
    assert "log p(x) is by quadrature." in two and "log p(x) is by quadrature in float32." in forty
    expected = "network size 1, 250 epochs, learning rate 0.0001 (cosine), 4 epochs of warm-up, mixed_bfloat16"
    assert expected in forty and "-90.00" in forty


def test_scores_of_another_kind_are_made_again(monkeypatch):
    asked = []
    config = experiment.Config(data_set="digits", precision="mixed_bfloat16")
    run = SimpleNamespace(path="a run", config=config, latent_dim=2, metrics={}, images=lambda split: [0] * 300)
    run.in_precision = lambda precision: setattr(run, "precision", precision) or run
    monkeypatch.setattr(readme_pictures.experiment, "load", lambda path, data_dir: run)
    monkeypatch.setattr(readme_pictures.evaluate, "main", lambda words: asked.append(words) or 0)
    first = {"num_images": 300, "split": "test", "tag": "quadrature_float32"}  # images, of an older version
    fitting = first | {"selection": "all"}
    for run.metrics in ({}, fitting | {"split": "val"}, fitting | {"tag": "isfitted_S1000"}, first, fitting):
        assert readme_pictures.scored(config, []) == 0
    assert len(asked) == 4 and asked[0] == [str(config.path), "--max_images", "1000", "--precision", "float32"]
