"""The commands of docs/seeds.md: each model that they train takes a step, and two of them are scored and drawn."""

import functools
import shlex

import numpy as np
import pytest
from conftest import ROOT, as_flags, called
from test_pages import COMMAND

import evaluate
import experiment
import plot
import train
import vampvae
from grids.configs import configs_of
from runtime.command import Parser
from training import fit

TEXT = (ROOT / "docs" / "seeds.md").read_text()
SECTIONS = TEXT.split("\n## ")[1:]
APART = (
    "--plot",  # tests/test_train.py
    "--init_from",  # tests/training/test_fit.py
    "--refit_prior",  # tests/training/test_refit.py
    "--distribute",  # tests/training/test_devices.py
    "--projection",  # tests/plotting/test_run_figures.py
    "--toy_posteriors",  # tests/plotting/test_toy.py fits each bound, and draws them
)
LINES = [
    (script, words.strip(), "Diffusion" in part.partition("\n")[0])
    for part in SECTIONS
    for script, words in COMMAND.findall(part)
    if not any(flag in words for flag in APART)
]
WORDS = [words for script, words, _ in LINES if script == "train.py"]
OTHERS = dict.fromkeys(line for line in LINES if line[0] != "train.py")
GRID, DEEP = "--gs_key sizes --latent_dim 2 4", "--model dvp"  # whose runs take the place of RUN
FEW = {"data_set": "digits", "epochs": 2, "max_train_images": 40, "batch_size": 20, "track": "none"}
SMALL = {
    "scales": "1x4,1x2",
    "context_size": 4,
    "channels": 8,
    "encoder_blocks": 1,
    "score_blocks": 1,
    "network_size": 0.25,
}
SMALL |= {"num_pseudo_inputs": 10, "num_exemplars": 10, "lr_warmup": 0}  # where they mean something


def configs_and_flags(words):
    """The settings of each run that a training command begins, made small, and all its flags."""
    parser = Parser()
    train.add_arguments(parser)
    flags = shlex.split(words)
    has = configs_of(parser.parse_args(flags))[0].has
    flags += as_flags(FEW | {name: value for name, value in SMALL.items() if has(name)})
    return configs_of(parser.parse_args(flags)), flags


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function of a training command's words that returns its first run, trained once for all tests."""

    @functools.cache
    def run(words):
        folder = tmp_path_factory.mktemp("runs")
        assert called(train.main, *configs_and_flags(words)[1], "--runs_dir", folder) == 0
        return experiment.load(sorted(folder.rglob("config.json"))[0].parent)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("words", WORDS)
def test_a_model_that_a_command_trains_takes_a_step(words):
    made, _ = configs_and_flags(words)
    assert len(made) == 1 + ("--gs_key" in words)
    for config in made:
        _, batches, _, model = fit.prepare(config)
        model.run_eagerly = True  # TensorFlow would trace the step, which takes longer than the step
        before = [np.array(weight) for weight in model.trainable_weights]
        logs = model.train_on_batch(*batches[0], return_dict=True)
        assert np.isfinite([float(value) for value in logs.values()]).all()
        assert any((np.array(weight) != old).any() for weight, old in zip(model.trainable_weights, before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("script", "words", "is_deep"), OTHERS)
def test_a_command_scores_or_draws(script, words, is_deep, trained, tmp_path):
    run, file, out = trained(DEEP if is_deep else GRID).path, tmp_path / "FILE.keras", tmp_path / "img"
    more = ["--runs_dir", run.parents[1]] if "--gs_key" in words else []
    if script == "plot.py":
        if more:  # of runs that have been scored
            assert called(evaluate.main, "--gs_key", "sizes", *more, "--num_samples", 3, "--max_images", 5) == 0
        more += ["--out", out]
    else:
        more += ["--max_images", 2, "--seed", 7] + ["--num_samples", 20] * ("--num_samples" not in words)
    if file.name in words:
        assert called(vampvae.main, "features", "--data_set", "digits", "--epochs", 1, "--out", file) == 0
        more += ["--num_generated", 20]
    main = {"plot.py": plot.main, "evaluate.py": evaluate.main}[script]
    given = {"RUN": run, file.name: file}
    assert called(main, *(given.get(word, word) for word in shlex.split(words)), *more) == 0
    assert [*(out.glob("*.png") if script == "plot.py" else run.glob("evaluations/*_seed7_*.json"))]


def test_every_section_has_commands():
    assert len(WORDS) > 40 and len(OTHERS) > 8 and all("`python" in part for part in SECTIONS)
