"""The commands of docs/seeds.md: training ones run for a few steps, the others on what these have trained."""

import functools
import shlex

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function of a training command's words that returns its runs, trained once for all tests."""
    parser = Parser()
    train.add_arguments(parser)

    @functools.cache
    def runs(words):
        config, folder = configs_of(parser.parse_args(shlex.split(words)))[0], tmp_path_factory.mktemp("runs")
        flags = FEW | {"runs_dir": folder} | {name: value for name, value in SMALL.items() if config.has(name)}
        assert called(train.main, *shlex.split(words), *as_flags(flags)) == 0
        return [experiment.load(path.parent) for path in sorted(folder.rglob("config.json"))]

    return runs


@pytest.mark.slow
@pytest.mark.parametrize("words", WORDS)
def test_a_training_command_trains(words, trained):
    runs = trained(words)
    assert len(runs) == 1 + ("--gs_key" in words) and all(len(run.history["epoch"]) == 2 for run in runs)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "words", "is_deep"), OTHERS)
def test_a_command_scores_or_draws(script, words, is_deep, trained, tmp_path):
    run, file, out = trained(DEEP if is_deep else GRID)[0].path, tmp_path / "FILE.keras", tmp_path / "img"
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
