"""Flags made from the settings, grids, and tables."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIELDS, PLACES, ROOT, other

import data
import experiment
import models
import plot
from experiment import Config, presets
from experiment.flags import add_runs, add_settings, chosen_runs, words_of
from experiment.presets import preset, preset_names
from experiment.settings import is_list
from grids.configs import configs_of
from runtime.command import Parser
from runtime.errors import UserError
from runtime.text import table, word


def configs(*words):
    """The grid that these words on the command line make."""
    parser = Parser()
    add_settings(parser)
    return configs_of(parser.parse_args([word(one) for one in words]))


def test_no_flags_are_the_defaults_and_each_flag_sets_its_field():
    assert configs() == [Config()]
    apart = {"network", "lr_warmup", "likelihood", "sigma", "image_size", "objective", "skip_norm", "init_from"}
    apart |= {"validation", "track_weights", "watch_log_px", "diagnostics"}  # which do not go with the rest
    others = Config(**{name: other(name) for name in ("model", "prior")})
    names = [name for name in FIELDS if name not in apart and others.has(name)]
    (config,) = configs(*[one for name in names for one in (f"--{name}", word(other(name)))])
    assert all(getattr(config, name) == other(name) for name in names)
    assert configs("--network", "mlp") == [Config(network="mlp")]


def test_a_preset_s_network_size_goes_with_its_network():
    preset = presets.preset("mnist_hvae_vamp").settings
    (config,) = configs("--preset", "mnist_hvae_vamp", "--network", "mlp")
    kept = {name: value for name, value in preset.items() if name != "network_size"}
    assert config == Config(**kept | {"network": "mlp"})


def test_an_empty_preset_is_none():
    with pytest.raises(UserError, match="--preset '' is unknown"):
        configs("--preset", "")


def test_a_network_without_sizes_refuses_an_explicit_one_even_if_it_is_the_default():
    for size in ("4", "2"):
        with pytest.raises(UserError, match=r"--network_size .*mlp|--network mlp .*--network_size"):
            configs("--network", "mlp", "--network_size", size)
    assert len(configs("--network", "conv", "--network_size", "4")) == 1


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_its_settings_and_flags_override_them(name):
    settings = preset(name).settings
    assert configs("--preset", name) == [Config(**settings)]
    changed = configs("--preset", name, "--epochs", 7, "--batch_size", 9, 11, "--gs_key", "key")
    assert changed == [Config(**(settings | {"epochs": 7, "batch_size": b, "gs_key": "key"})) for b in (9, 11)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "dvp", "--prior", "standard"), "--prior standard does not go with --model dvp"),
        (("--model", "ladder", "--network", "conv"), "--network conv does not go with --model ladder"),
        (("--model", "ladder", "--latent_dim", 2), "--latent_dim 2 does not go with --model ladder"),
        (("--model", "dvp", "--network_size", 4), "--network_size 4.0 does not go with --model dvp"),
        (
            ("--model", "ladder", "--context_size", 7),
            "--context_size 7 does not go with --model ladder, but with dvp",
        ),
        (("--scales", "4x14,4x7"), "--scales 4x14,4x7 does not go with --model vae, but with ladder or dvp"),
        (
            ("--prior", "exemplar", "--posterior", "realnvp"),
            "--posterior realnvp does not go with --prior exemplar, whose components are Gaussians",
        ),
        (
            ("--prior", "lars", "--distribute", "processes"),
            "--distribute processes does not go with --prior lars",
        ),
        (
            ("--prior", "vamp", "--num_exemplars", 9),
            "--num_exemplars 9 does not go with --prior vamp, but with exemplar",
        ),
        (("--latent_dim", 2, "--latent_dims", "20,20"), "--latent_dim does not go with --latent_dims, whose sum it is"),
        (("--preset", "mnist_dvp", "--num_pseudo_inputs", 500), "--num_pseudo_inputs 500 does not go with --model dvp"),
        (("--model", "vae", "dvp", "--prior", "vamp", "--gs_key", "k"), "--prior vamp does not go with --model dvp"),
        (
            ("--model", "ladder", "--prior", "lars"),
            "--prior lars does not go with --model ladder, which has standard, mog",
        ),
        (("--model", "dvp", "--scales", "4"), "--scales 4 must be counts and rows, the finest first, as 4x14,4x7"),
        (("--model", "dvp", "--scales", "0x14"), "--scales 0x14 must be counts and rows"),
        (("--model", "dvp", "--scales", "4x7,4x14"), "--scales 4x7,4x14 must begin with the finest"),
        (
            ("--model", "dvp", "--scales", "4x7,4x7"),
            "--scales 4x7,4x7 must begin with the finest, and have each once",
        ),
        (("--model", "dvp", "--score_channels", 15), "--score_channels 15 must be even"),
        (
            ("--model", "dvp", "--noise_schedule", "learned", "--objective", "iwae"),
            "--noise_schedule learned goes with --objective elbo, not iwae",
        ),
        (
            ("--model", "ladder", "--objective", "lmcvae"),
            "--objective lmcvae goes with --model vae, hvae or markov; ladder has elbo, iwae, miwae, ciwae",
        ),
    ],
)
def test_settings_of_other_models_are_refused_even_if_usual(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configs(*words)


def test_there_is_a_preset_of_each_network_and_model():
    presets = [preset(name).settings for name in preset_names()]
    assert {one.get("network", Config.network) for one in presets} == set(models.NETWORKS)
    assert {one["model"] for one in presets} == set(models.MODELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[settings]\nlearning_rate = 1", "unknown setting 'learning_rate'"),
        ("[settings]\nepochs = 'many'", "--epochs 'many' must be int"),
        ("price = 'none'\n[settings]", "it has about, cost, expected, price, settings, and should have about"),
        ("settings", "Expected '=' after a key"),
    ],
)
def test_a_preset_with_something_unknown_is_an_error(tmp_path, monkeypatch, content, message):
    about = "" if message.startswith("Exp") else "about = ''\ncost = ''\nexpected = ''\n"
    (tmp_path / "mine.toml").write_text(about + content)
    monkeypatch.setattr(presets, "PRESETS", tmp_path)
    with pytest.raises(UserError, match=f"mine.toml: .*{message}"):
        configs("--preset", "mine")
    with pytest.raises(UserError, match=r"--preset mini is unknown; did you mean mine\? \(see --list_presets\)"):
        configs("--preset", "mini")


def test_several_values_make_a_grid_in_order():
    found = configs("--latent_dim", 5, 3, "--lr", "1e-2", "1e-3", "--model", "vae", "hvae", "--gs_key", "key")
    expected = list(itertools.product(["vae", "hvae"], [5, 3], [1e-2, 1e-3]))
    assert [(config.model, config.latent_dim, config.lr) for config in found] == expected
    assert {config.gs_key for config in found} == {"key"}


def test_runs_with_the_same_id_are_one():
    assert len(configs("--latent_dim", 2, 2, "--lr", "1e-4", "0.0001")) == 1
    grid = configs("--prior", "standard", "vamp", "--num_pseudo_inputs", 5, 7, "--gs_key", "key")
    assert [config.training_id.split("_dim2")[1] for config in grid] == [
        "_factor4.0_epochs250",
        "_factor4.0_epochs250_K5",
        "_factor4.0_epochs250_K7",
    ]


def test_a_grid_needs_a_key():
    with pytest.raises(UserError, match=r"a grid of 6 runs.*--gs_key"):
        configs("--latent_dim", 2, 3, "--lr", 1, 2, 3)


def test_none_is_a_word_for_what_may_be_missing_only(capsys):
    config = configs("--gs_key", "None", "--max_train_images", "None", "--data_dir", "None")[0]
    assert (config.gs_key, config.max_train_images, config.data_dir) == (None, None, None)
    assert len(configs("--max_train_images", "None", 30, "--gs_key", "key")) == 2
    with pytest.raises(SystemExit) as exit_:
        configs("--seed", "None")
    assert exit_.value.code == 2 and "invalid int value: 'None'" in capsys.readouterr().err


def test_where_things_lie_takes_one_value(capsys):
    places = [name for name in PLACES if not is_list(FIELDS[name])]
    for name in places:
        with pytest.raises(SystemExit):
            configs(f"--{name}", other(name), other(name))
    assert capsys.readouterr().err.count("unrecognized arguments") == len(places)


def test_a_home_that_the_shell_leaves_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/her")
    (config,) = configs("--data_dir=~/data", "--runs_dir=~/runs")
    assert (config.data_dir, config.runs_dir) == ("/home/her/data", "/home/her/runs")
    parser = Parser()
    plot.add_arguments(parser)
    args = parser.parse_args(["--out=~/pictures", "--runs_dir=~/runs"])
    assert (args.out, args.runs_dir) == (Path("/home/her/pictures"), "/home/her/runs")


def test_words_make_the_same_settings_even_if_a_value_looks_like_a_flag():
    (config,) = configs("--runs_dir=-x", "--lr", "1e-3", "--epochs", 3)
    assert configs(*words_of(config)) == [config] and "--runs_dir=-x" in words_of(config)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "> /dev/full 2>&1"])
def test_standard_streams_may_be_closed_or_full(tmp_path, closed):
    """Presets are listed in more than one buffer; the file says that all of them were."""
    code = "import sys, train; code = train.main(['--list_presets']); open(sys.argv[1], 'w').write(str(code))"
    command = f'{sys.executable} -c "{code}" {tmp_path / "code"} {closed}'
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    full = "full" in closed
    assert (tmp_path / "code").read_text() == str(int(full)) and done.returncode == 0
    assert done.stderr == "error: writing failed: No space left on device\n" * (full and "2>" not in closed)


def test_what_standard_output_cannot_encode_is_escaped():
    code = "from runtime.command import command; command(lambda _: print('a\\u2603\\udcff'), None)"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "a\\u2603\\udcff\n"


def test_a_table_is_aligned_and_small_numbers_keep_two_digits():
    rows = [{"run": "a", "value": -101.234, "note": "x"}, {"run": "long", "value": 0.01234, "note": ""}]
    assert table(rows).splitlines() == ["run     value  note", "a     -101.23  x", "long    0.012"]


def test_what_is_no_run_is_left_out_where_runs_are_named_beside_it(tmp_path, capsys):
    """As a shell does that makes names of `runs/*`."""
    for seed in (0, 1):
        config = Config(data_set="digits", runs_dir=str(tmp_path), seed=seed)
        experiment.create(config, config.path, data.load("digits"))
        (config.path / "best.safetensors").touch()
    (tmp_path / "logs").mkdir()
    (tmp_path / "ranking.csv").touch()
    parser = Parser()
    add_runs(parser)
    names = sorted(map(str, tmp_path.iterdir()))
    assert len(chosen_runs(parser.parse_args(names))) == 2
    said = f"left out, as no config.json is found in them: {tmp_path / 'logs'}, {tmp_path / 'ranking.csv'}\n"
    assert capsys.readouterr().err.startswith(f"warning: {said}")
    new = Config(data_set="digits", runs_dir=str(tmp_path), seed=2)  # whose first epoch is still to come
    experiment.create(new, new.path, data.load("digits"))
    assert [run.config.seed for run in chosen_runs(parser.parse_args([str(new.path), *names]))] == [0, 1]
    assert f"warning: left out, as they have no weights yet: {new.path}\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"seed2 has no weights yet \(it is "):
        chosen_runs(parser.parse_args([str(new.path)]))
    for words, no_run in ((names[-2:], "logs"), ([*names, str(tmp_path / "typo")], "typo")):
        with pytest.raises(UserError, match=f"{no_run} is no run: it has no readable config.json"):
            chosen_runs(parser.parse_args(words))
