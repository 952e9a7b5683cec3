"""The commands of docs/seeds.md: each trains for a few steps."""

import shlex

import pytest
from conftest import ROOT
from test_pages import COMMAND

import experiment
import train
from grids.configs import configs_of
from runtime.command import Parser

TEXT = (ROOT / "docs" / "seeds.md").read_text()
WORDS = [words.strip() for script, words in COMMAND.findall(TEXT) if script == "train.py"]
APART = ("--refit_prior", "--init_from", "--gs_key", "--distribute", "--plot")  # which have tests of their own
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


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words in WORDS if not any(flag in words for flag in APART)])
def test_a_training_command_trains(words, tmp_path, capfd):
    parser = Parser()
    train.add_arguments(parser)
    (config,) = configs_of(parser.parse_args(shlex.split(words)))
    flags = FEW | {"runs_dir": tmp_path} | {name: value for name, value in SMALL.items() if config.has(name)}
    smaller = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert train.main([*shlex.split(words), *smaller]) == 0
    assert len(experiment.load(capfd.readouterr().out.splitlines()[-1]).history["epoch"]) == 2


def test_every_section_has_commands():
    assert len(WORDS) > 40 and all("`python" in part for part in TEXT.split("\n## ")[1:])
