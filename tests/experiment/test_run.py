"""Settings, flags, training ids and the folder of a run; no training, and Keras only where weights are loaded."""

import collections
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DEEP, FIELDS, NUMBERS, PLACES, ROOT, SMALL, other, owner_of, save_weights
from hypothesis import given
from hypothesis import strategies as st

import data
import experiment
import models
from experiment import Config, record, run
from experiment.config import BINARIZED_NOTE, DENSITY_NOTE, GREY_NOTE
from experiment.record import FORMAT, git_commit
from experiment.run import PER_IMAGE
from experiment.tracking import evaluated
from grids.workers import log_of
from plotting.output import Output
from runtime import atomic, backend
from runtime.errors import UserError

SHAPE = (8, 8, 1)
HEAD = ",".join(Config().columns)
START = f'{{"format": {FORMAT}'
RECORD = START + ', "backend": "jax", "versions": {}, "data_sha256": {}, "config": %s}'


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------- Config


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("latent_dim", 1, 0),
        ("latent_dim", 4096, 4097),
        ("network_size", 1e-3, 0.0),
        ("network_size", 64.0, 65.0),
        ("network_size", 0.25, math.nan),
        ("epochs", 1, 0),
        ("batch_size", 1, 0),
        ("lr", 1e-30, 0.0),
        ("lr", 1e30, -1e-4),
        ("lr", 1.0, math.nan),
        ("lr", 2.0, math.inf),
        ("lr", 2.0, -math.inf),
        ("seed", 0, -1),
        ("seed", 2**31 - 1, 2**31),
        ("num_pseudo_inputs", 1, 0),
        ("patience", 0, -1),
        ("beta", 1e-6, 0.0),
        ("beta", 4.0, -1.0),
        ("beta", 10_000.0, math.nan),
        ("beta_warmup", 0, -2),
        ("max_train_images", 1, 0),
        ("activation", "log_sigmoid", "../relu"),
        ("activation", "silu", "a" * 300),
        ("gs_key", "a.b-c_4", "a/b"),
        ("gs_key", "x" * 100, "x" * 101),
        ("gs_key", "a..b", ".."),
        ("gs_key", None, ""),
    ],
)
def test_a_value_on_the_bound_is_taken_and_one_beyond_is_named(name, good, bad):
    assert getattr(Config(**{name: good}), name) == good
    with pytest.raises(UserError, match=f"^--{name} ") as raised:
        Config(**{name: bad})
    assert str(bad)[:50] in str(raised.value)


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name].metadata["choices"]])
def test_a_choice_is_one_of_the_registered_names_and_the_error_lists_them(name):
    choices = FIELDS[name].metadata["choices"]
    base = {} if name == "model" else {"model": "hvae", "latent_dim": 4}  # goes with every posterior
    base |= {pick: names[0] for pick, names in models.owners(name).items()}
    base = {"model": base["model"]} if base.get("model") in ("ladder", "dvp") else base
    for choice in choices:
        model = {"model": models.NETWORKS[choice].models[-1]} if name == "network" else {}
        found = getattr(Config(**(base | model | {name: choice})), name)
        assert found == choice or ((name, choice) == ("precision", "auto") and found in models.PRECISIONS)
    with pytest.raises(UserError, match=f"--{name} 'nonsense'.*{', '.join(choices)}"):
        Config(**{name: "nonsense"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 1, "objective": "amcvae"}, "--num_samples 1 is too small: amcvae needs at least 2"),
        ({"num_steps": 3}, "--num_steps 3 does not go with --objective elbo, but with lmcvae or amcvae"),
        (
            {"learn_schedule": "on", "objective": "iwae"},
            "--learn_schedule on does not go with --objective iwae, but with lmcvae or amcvae",
        ),
        (
            {"objective": "lmcvae", "learn_step_size": "on", "target_accept": 0.9},
            "--target_accept 0.9 does not go with --learn_step_size on",
        ),
        (
            {"objective": "lmcvae", "learn_step_size": "on", "step_rule": "variance"},
            "--step_rule variance does not go with --learn_step_size on",
        ),
        (
            {"skip_below": 0.1, "objective": "amcvae"},
            "--skip_below 0.1 does not go with --objective amcvae, but with lmcvae",
        ),
        (
            {"watch_log_px": 5, "model": "dvp"},
            "--watch_log_px 5 does not go with --model dvp",
        ),
        ({"watch_log_px": 5, "distribute": "devices"}, "--watch_log_px 5 does not go with --distribute devices"),
        ({"log_steps": "off"}, "--log_steps off does not go with --objective elbo, but with lmcvae or amcvae"),
        (
            {"objective": "dreg", "network": "pixel", "model": "hvae"},
            "--objective dreg does not go with --network pixel",
        ),
        ({"objective": "lmcvae", "network": "pixel", "model": "hvae"}, "would pass through batch normalisation"),
        ({"network": "pixel", "model": "hvae", "ema": 0.9}, "--ema 0.9 does not go with --network pixel"),
        ({"beta_start": 0.5}, "--beta_start 0.5 needs --beta_warmup, the epochs in which it becomes --beta"),
        (
            {"objective": "lmcvae", "drift": "network", "learn_schedule": "halving"},
            "--learn_schedule halving does not go with --drift network: its bound does not depend on the schedule",
        ),
        ({"num_samples": 0}, "--num_samples 0 must be at least 1"),
        ({"num_steps": 0, "objective": "lmcvae"}, "--num_steps 0 must be at least 1"),
        ({"step_size": 0.0, "objective": "lmcvae"}, "--step_size 0.0 must be at least 1e-05 and at most 1"),
        ({"target_accept": 1.5, "objective": "amcvae"}, "--target_accept 1.5 must be more than 0 and at most 0.999"),
        (
            {"target_accept": 0.5, "objective": "amcvae", "acceptance_rule": "barker"},
            "--target_accept 0.5 must be below 0.5 with --acceptance_rule barker",
        ),
    ],
)
def test_an_objective_and_what_does_not_go_with_it(settings, message):
    with pytest.raises(UserError, match=message):
        Config(**settings)


def test_the_id_of_an_objective_says_what_is_unusual():
    def suffix(**settings):
        return Config(**settings).training_id.partition("_epochs250")[2]

    assert suffix() == suffix(num_samples=1) == "" and suffix(num_samples=3) == "_samples3"
    assert suffix(objective="iwae") == suffix(objective="iwae", num_samples=5) == "_iwae"
    assert suffix(objective="iwae", num_samples=50, lr=1e-3) == "_iwae_samples50_lr0.001"
    assert suffix(objective="amcvae", target_accept=0.8) == "_amcvae"
    assert suffix(objective="lmcvae", target_accept=0.9, num_steps=10) == "_lmcvae_steps10_accept0.9"
    following = {"objective": "lmcvae", "step_rule": "variance"}
    assert suffix(**following) == suffix(**following, target_accept=0.9) == "_lmcvae_steprulevariance"
    assert suffix(**following, target_accept=0.8) == "_lmcvae_steprulevariance_accept0.8"


@pytest.mark.parametrize(
    ("name", "value"),
    [("latent_dim", True), ("epochs", 3.0), ("lr", "1e-4"), ("lr", True), ("activation", 3), ("model", None)],
)
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(UserError, match=f"--{name} .* must be {FIELDS[name].type.__name__}, not"):
        Config(**{name: value})


def test_an_int_is_taken_for_a_float_and_becomes_one():
    config = Config(lr=1, network_size=4)
    assert (type(config.lr), type(config.network_size)) == (float, float)
    assert config == Config(lr=1.0, network_size=4.0) and config.training_id == Config(lr=1.0).training_id


def test_a_hierarchy_needs_two_dimensions():
    assert Config(model="vae", latent_dim=1).latent_dim == 1 and Config(model="hvae", latent_dim=2).latent_dim == 2
    with pytest.raises(UserError, match="--latent_dim 1 is too small: hvae needs at least 2"):
        Config(model="hvae", latent_dim=1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "hvae", "prior": "vamp"}, "mnist_hvae_vamp_bs256_dim2_factor4.0_epochs250"),
        ({}, "mnist_vae_standard_bs256_dim2_factor4.0_epochs250"),
        (
            {"data_set": "digits", "batch_size": 64, "latent_dim": 3, "network_size": 0.25, "epochs": 5, "lr": 1e-3}
            | {"seed": 7},
            "digits_vae_standard_bs64_dim3_factor0.25_epochs5_lr0.001_seed7",
        ),
        (
            {"prior": "vamp", "activation": "tanh", "num_pseudo_inputs": 12, "binarize": "none", "patience": 4}
            | {"beta": 4.0, "beta_warmup": 6, "max_train_images": 800},
            "mnist_vae_vamp_bs256_dim2_factor4.0_epochs250_acttanh_K12_binarizenone_patience4_beta4.0_warmup6_n800",
        ),
    ],
)
def test_the_training_id_reads_as_documented(settings, expected):
    assert Config(**settings).training_id == expected


def test_every_setting_that_changes_the_numbers_changes_the_id_in_its_own_way():
    names = [name for name in NUMBERS if name not in ("binarize", "image_size")]  # of bernoulli, of own images
    ids = {name: Config(**(owner_of(name) | {name: other(name)})).training_id for name in names}
    assert len(set(ids.values())) == len(names)
    assert all(ids[name] != Config(**owner_of(name)).training_id for name in names)
    assert len({Config(binarize=choice).training_id for choice in ("dynamic", "threshold", "none")}) == 3
    assert Config(objective="miwae", num_samples=9, num_groups=3).training_id.endswith("_miwae_samples9_groups3")


def test_no_two_settings_have_one_suffix_but_for_those_that_never_meet():
    tags = [tag for field in FIELDS.values() if (tag := field.metadata["tag"])]
    assert [tag for tag, count in collections.Counter(tags).items() if count > 1] == ["act"]  # of deep models or others


@pytest.mark.parametrize("name", PLACES)
def test_where_things_lie_and_how_fast_they_run_is_not_in_the_id(name):
    assert other(name) != getattr(Config(**SMALL), name)
    assert Config(**(SMALL | {name: other(name)})).training_id == Config(**SMALL).training_id


def test_the_places_are_those_of_the_documentation():
    expected = {"log_steps", "gs_key", "data_dir", "other_data", "init_from", "runs_dir", "save_minutes", "track"}
    expected |= {
        "snapshot_epochs",
        "track_weights",
        "jit",
        "steps_per_execution",
        "distribute",
        "deterministic",
        "watch_log_px",
        "diagnostics",
    }
    assert expected == set(PLACES)


def test_runs_that_begin_with_other_weights_have_other_ids():
    assert Config(init_from="a", init_hash="0123456789ab").training_id == Config().training_id + "_from0123456789ab"


def test_a_score_says_with_which_beta_its_run_was_trained():
    said = "trained with beta 0.5, scored with beta 1"
    assert Config().note == "" and Config(beta=0.5).note == said
    assert Config(beta=0.5, likelihood="gaussian").note == f"density of pixels in [0, 1], not a probability; {said}"


def test_pseudo_inputs_that_are_not_there_do_not_change_the_id():
    assert Config(prior="standard", num_pseudo_inputs=7).training_id == Config(prior="standard").training_id
    assert Config(prior="vamp", num_pseudo_inputs=7).training_id == Config(prior="vamp").training_id + "_K7"


def test_the_id_knows_what_auto_means():
    assert Config(binarize="dynamic").training_id == Config(binarize="auto").training_id
    assert Config(binarize="auto").binarization == "dynamic"
    ids = {Config(binarize=mode).training_id for mode in data.BINARIZE}
    assert len(ids) == 3


def test_settings_are_what_changes_the_numbers_and_means_something():
    settings = Config(objective="iwae", num_samples=5, binarize="dynamic", prior="mog", lr=1e-3).settings
    expected = {"num_samples": None, "binarize": "auto", "num_pseudo_inputs": 500, "lr": 1e-3}
    assert {name: settings[name] for name in expected} == expected
    assert not {"pseudo_init", "num_steps", "sigma", "scales", *PLACES} & set(settings)
    assert not {"prior", "network", "network_size", "latent_dim"} & set(Config(**DEEP).settings)
    assert not {"network_size", "activation"} & set(Config(network="mlp").settings)


def test_only_images_of_one_data_set_under_one_law_can_be_compared():
    assert Config(binarize="dynamic", lr=1.0).comparable == Config(model="hvae").comparable
    others = [{}, {"data_set": "digits"}, {"binarize": "none"}, {"binarize": "none", "likelihood": "logistic"}]
    assert len({Config(**one).comparable for one in others}) == 4


@pytest.mark.parametrize("name", ["freyfaces", "histopathology"])
def test_grey_sets_have_a_likelihood_of_grey_values(name):
    config = Config(data_set=name)
    assert (config.observation, config.binarization, config.note) == ("logistic", "none", "")
    assert config.training_id == f"{name}_vae_standard_bs256_dim2_factor4.0_epochs250"
    assert Config(data_set=name, likelihood="bernoulli").note == GREY_NOTE


def test_an_id_of_any_length_makes_names_of_files(tmp_path, monkeypatch):
    """Of a run, what replaces it, its log and its figures; an id that a file system takes is the name of its folder."""
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 63)
    (tmp_path / ("x" * 70)).mkdir()
    long = {name: other(name) for name in ("posterior", "lr", "optimizer", "lr_schedule", "accumulate", "precision")}
    long |= {"prior": "vamp", "activation": "hard_silu", "lr_final": 1.2345e-7, "ema": 0.98765, "clip_norm": 1234.5}
    long |= {"beta_warmup": 100, "patience": 50, "max_train_images": 12345, "pseudo_init": "random"}
    config = Config(data_set=f"folder:{tmp_path}/{'x' * 70}", runs_dir=str(tmp_path / "runs"), seed=7, **long)
    assert len(config.training_id) > 255 == len(config.path.name)
    assert config.path.name[:200] == config.training_id[:200] and config.path.name[-20:] == config.training_id[-20:]
    assert config.path != dataclasses.replace(config, num_pseudo_inputs=501).path
    dataset = data.load("digits")
    for _ in range(2):
        experiment.create(config, config.path, dataset, overwrite=True)
    assert (config.path / "replaced").is_dir() and experiment.load(config.path).config == config
    Output().write(config.path / "figures", f"{config.training_id}_embedding_mean.png", lambda: b"")
    assert names_in(config.path / "figures")[0].endswith("_embedding_mean.png")
    log_of(config).touch()
    saved = experiment.load(config.path).save_evaluation(METRICS | {"tag": "is" * 150}, {"index": np.arange(7)})
    assert saved.name.startswith("val_isis") and saved.name.endswith("_N7.json")
    evaluated(config.path, config, saved.stem, {}, 1)
    short = dataclasses.replace(config, beta_warmup=0, patience=0)
    assert short.path.name == short.training_id


def test_a_network_without_sizes_has_its_name_in_the_place_of_the_factor():
    config = Config(data_set="staticmnist", network="mlp", prior="mog", latent_dim=40, num_pseudo_inputs=9)
    assert config.training_id == "staticmnist_vae_mog_bs256_dim40_mlp_epochs250_K9"
    for settings in ({"network_size": 2.0}, {"activation": "tanh"}):
        with pytest.raises(UserError, match="does not go with --network mlp, but with conv"):
            Config(network="mlp", **settings)


def test_the_units_of_dense_layers_are_in_the_id():
    config = Config(network="mlp", hidden_units=20)
    assert config.training_id == "mnist_vae_standard_bs256_dim2_mlp_epochs250_units20"
    assert config == Config.from_dict(dataclasses.asdict(config) | {"hidden_units": 20})  # as it was written before
    assert Config(network="mlp", hidden_units=(40, 20)).training_id.endswith("_units40-20")
    with pytest.raises(UserError, match="--hidden_units 20 does not go with --network mcvae"):
        Config(network="mcvae", hidden_units=20)
    with pytest.raises(UserError, match=r"--hidden_units 20 .* ladder"):
        Config(**DEEP | {"model": "ladder"}, hidden_units=20)


def test_sizes_of_latent_layers_add_up_to_the_latent_dimensions():
    config = Config(model="hvae", latent_dims=(50, 100))
    assert config.latent_dim == 150 and config == Config(model="hvae", latent_dim=150, latent_dims=[50, 100])
    assert config.training_id == Config(model="hvae", latent_dim=150).training_id + "_dims50-100"
    assert Config(model="hvae", latent_dims=(3, 2)).training_id == Config(model="hvae", latent_dim=5).training_id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 40}, "--latent_dims 50,100 does not add up to --latent_dim 40"),
        ({"latent_dims": (50, 100, 20)}, "--latent_dims 50,100,20 must be two numbers, of the top and of"),
        ({"model": "vae"}, "--latent_dims 50,100 does not go with --model vae, but with hvae"),
        ({"posterior": "realnvp", "latent_dims": (9, 1)}, "--posterior realnvp needs two dimensions in each layer"),
        ({"prior": "flow", "latent_dims": (1, 9)}, "--prior flow needs two dimensions in the top layer"),
    ],
)
def test_sizes_of_latent_layers_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Config(**{"model": "hvae", "latent_dims": (50, 100)} | settings)


def test_a_network_of_one_model_refuses_the_others():
    assert Config(network="gatedconv", model="hvae").training_id.split("_")[5] == "gatedconv"
    with pytest.raises(UserError, match="--network gatedconv needs --model hvae"):
        Config(network="gatedconv", model="vae")


def test_a_prior_made_of_data_does_not_begin_with_noise():
    assert Config(prior="vamp", pseudo_init="random").training_id.endswith("_initrandom")
    assert Config(prior="mog", pseudo_init="random").training_id == Config(prior="mog").training_id
    with pytest.raises(UserError, match="--pseudo_init random does not go with --prior vampdata"):
        Config(prior="vampdata", pseudo_init="random")


def test_the_likelihood_decides_what_auto_binarizes():
    gaussian = Config(likelihood="gaussian", sigma=0.5)
    assert Config().observation == "bernoulli" and Config().binarization == "dynamic"
    for name in ("mixlogistic", "logistic"):
        logistic = Config(likelihood=name)
        assert (logistic.observation, logistic.binarization, logistic.note) == (name, "none", "")
        assert logistic.training_id.endswith(f"_epochs250_likelihood{name}")
    assert gaussian.training_id.endswith("_epochs250_likelihoodgaussian_sigma0.5")
    assert gaussian.note == "density of pixels in [0, 1], not a probability"
    assert Config(likelihood="bernoulli").training_id == Config().training_id
    assert Config(likelihood="logistic", binarize="none").training_id == logistic.training_id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "logistic", "binarize": "dynamic"}, "--likelihood logistic is for grey pixels"),
        ({"likelihood": "logistic", "data_set": "staticmnist"}, "those of staticmnist are binarized"),
        ({"likelihood": "mixlogistic", "binarize": "dynamic"}, "--likelihood mixlogistic is for grey pixels"),
        ({"likelihood": "mixlogistic", "data_set": "staticmnist"}, "those of staticmnist are binarized"),
        ({"sigma": 0.5}, "--sigma 0.5 goes with --likelihood gaussian"),
        ({"likelihood": "gaussian", "sigma": 0.0}, "--sigma 0.0 must be more than 0"),
    ],
)
def test_a_likelihood_that_does_not_fit_the_pixels_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Config(**settings)


def test_a_learned_sigma_is_named_in_the_id_and_beside_scores():
    config = Config(likelihood="gaussian", sigma="learned")
    assert config.training_id.endswith("_epochs250_likelihoodgaussian_sigmalearned")
    assert config.note == f"{DENSITY_NOTE}, and its sigma is trained"
    assert config == Config.from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    with pytest.raises(UserError, match="--sigma learned goes with --likelihood gaussian"):
        Config(sigma="learned")
    with pytest.raises(UserError, match="--sigma 'trained' must be float, not str"):
        Config(likelihood="gaussian", sigma="trained")


def test_own_images_stand_in_the_id_with_their_folders_name_and_a_hash_of_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(data_set="folder:my cats/")
    assert re.fullmatch(r"folder-my-cats-[0-9a-f]{8}_vae_standard_bs256_dim2_factor4.0_epochs250", config.training_id)
    assert config.training_id == Config(data_set=f"folder:{tmp_path}/my cats").training_id
    assert config.training_id != Config(data_set="folder:other/my cats").training_id
    assert config.binarization == "dynamic" and config.note == "" and not any(tmp_path.iterdir())
    assert Config(data_set="folder:x", binarize="none").note == GREY_NOTE


NATURAL = {"data_set": "folder:x", "auto_likelihood": "mixlogistic"}  # as training has found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("mixlogistic", "none", "")),
        ({"binarize": "none"}, ("mixlogistic", "none", "")),
        ({"binarize": "dynamic"}, ("bernoulli", "dynamic", BINARIZED_NOTE)),
        ({"binarize": "threshold"}, ("bernoulli", "threshold", BINARIZED_NOTE)),
        ({"likelihood": "bernoulli"}, ("bernoulli", "dynamic", BINARIZED_NOTE)),
        ({"likelihood": "bernoulli", "binarize": "none"}, ("bernoulli", "none", GREY_NOTE)),
        ({"likelihood": "logistic"}, ("logistic", "none", "")),
        ({"likelihood": "gaussian"}, ("gaussian", "none", DENSITY_NOTE)),
        ({"auto_likelihood": "bernoulli"}, ("bernoulli", "dynamic", "")),
        (
            {"data_set": "cifar10", "likelihood": "bernoulli", "binarize": "dynamic"},
            ("bernoulli", "dynamic", BINARIZED_NOTE),
        ),
    ],
)
def test_own_images_decide_what_auto_is(settings, expected):
    config = Config(**(NATURAL | settings))
    assert (config.observation, config.binarization, config.note) == expected


def test_the_id_does_not_depend_on_what_own_images_decide():
    commands = [{}, {"likelihood": "bernoulli"}, {"binarize": "dynamic"}, {"likelihood": "mixlogistic"}]
    commands += [{"binarize": "none"}, {"binarize": "threshold"}]
    ids = [Config(data_set="folder:x", **words).training_id for words in commands]
    assert len(set(ids)) == len(ids) and ids[0].endswith("_epochs250")
    for auto in ("bernoulli", "logistic", "mixlogistic"):
        found = {"data_set": "folder:x", "auto_likelihood": auto}
        assert [Config(**found, **words).training_id for words in commands] == ids
    before, after = (Config(data_set="folder:x", auto_likelihood=one) for one in (None, "mixlogistic"))
    assert before.comparable != after.comparable == Config(**NATURAL, likelihood="mixlogistic").comparable


def test_the_size_of_own_images_is_part_of_the_id_and_of_what_is_compared():
    small, large = (Config(data_set="folder:x", image_size=size) for size in (32, 64))
    assert small.training_id == Config(data_set="folder:x").training_id + "_size32"
    assert small.comparable != large.comparable
    with pytest.raises(UserError, match="--image_size 32 goes with --data_set folder:PATH"):
        Config(image_size=32)


def test_binary_pixels_have_a_likelihood_without_binarization():
    assert Config(data_set="staticmnist").binarization == "none" and Config(data_set="staticmnist").note == ""


def test_grey_pixels_have_no_likelihood():
    assert [mode for mode in data.BINARIZE if Config(binarize=mode).note] == ["none"]


@given(st.lists(st.floats(0, 64, exclude_min=True), min_size=2, max_size=2, unique=True))
def test_distinct_floats_never_share_an_id(values):
    for name in ("lr", "network_size"):
        assert len({Config(**{name: value}).training_id for value in values}) == 2


@given(
    st.builds(
        Config,
        model=st.just("hvae"),
        latent_dim=st.integers(2, 50),
        lr=st.floats(1e-300, 1e300),
        network_size=st.floats(0.01, 64),
        max_train_images=st.none() | st.integers(1, 9999),
        binarize=st.sampled_from(data.BINARIZE),
        gs_key=st.none() | st.just("key"),
    )
)
def test_a_config_survives_json(config):
    assert Config.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_an_unknown_setting_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown setting 'colour'$"):
        Config.from_dict({"lr": 0.1, "colour": "red"})


def test_a_run_lies_under_its_id_and_in_a_group_under_its_key():
    config = Config(runs_dir="some/where", **SMALL)
    assert config.path == Path("some/where") / config.training_id
    assert dataclasses.replace(config, gs_key="key").path == Path("some/where/key") / config.training_id


# ---------------------------------------------------------------------------------------------- the folder of a run


@pytest.fixture
def folder(tmp_path):
    """A run as far as it can be read without Keras: config.json, status.json and history.csv."""
    path = tmp_path / "a run"
    path.mkdir()
    settings = {"data_set": "digits", "network_size": 0.25, "prior": "vamp", "num_pseudo_inputs": 5, "latent_dim": 3}
    record = {"format": FORMAT, "config": dataclasses.asdict(Config(**settings))}
    record |= {"backend": "tensorflow", "versions": {}, "data_sha256": {}}
    atomic.write_json(path / "config.json", record)
    atomic.write_json(path / "status.json", {"state": "finished", "best_epoch": 2})
    rows = [dict.fromkeys(Config().columns, 0.5) | {"epoch": i, "val_elbo": -10.0 / i} for i in (1, 2, 3)]
    atomic.write_csv(path / "history.csv", rows)
    return path


def edit(path, **settings):
    """Changes settings in a run's config.json."""
    record = json.loads((path / "config.json").read_text())
    record["config"] |= settings
    (path / "config.json").write_text(json.dumps(record))


def test_a_run_from_before_own_images_had_a_size_is_taken(folder):
    record = json.loads((folder / "config.json").read_text())
    for name in ("image_size", "auto_likelihood", "log_steps"):
        del record["config"][name]
    (folder / "config.json").write_text(json.dumps(record))
    assert experiment.load(folder).config.image_size is None


def test_chains_from_before_the_history_had_each_of_their_steps_are_taken_as_they_are(folder):
    edit(folder, objective="lmcvae", num_steps=2)
    terms = {"acceptance_1", "acceptance_2", "step_1", "step_2"}
    assert set(experiment.load(folder).config.terms) > terms
    record = json.loads((folder / "config.json").read_text())
    del record["config"]["step_rule"], record["config"]["log_steps"]
    (folder / "config.json").write_text(json.dumps(record))
    assert not terms & set(experiment.load(folder).config.terms)


def test_a_folder_is_read_back(folder):
    run = experiment.load(folder)
    assert (run.config.prior, run.config.network_size, run.state) == ("vamp", 0.25, "finished")
    np.testing.assert_array_equal(run.history["val_elbo"], [-10, -5, -10 / 3])
    assert run.images("val").shape == (300, *SHAPE) and set(np.unique(run.images("test"))) == {0, 1}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", None, "is no run: it has no readable config.json"),
        ("config.json", "{", "is no run: it has no readable config.json"),
        ("config.json", "[3]", "is no run: it has no readable config.json"),
        ("config.json", "\xff\xfe", "is no run: it has no readable config.json"),
        ("config.json", "{}", "this version: version 'unknown' wrote it, in format None; this version reads format"),
        ("config.json", START + "}", "config.json that does not fit this version: 'config'"),
        ("config.json", RECORD % "3", "its settings are int, not an object"),
        ("config.json", RECORD % '{"lr": 1}', "setting 'model' is missing"),
        ("config.json", "[" * 100_000, "is no run: it has no readable config.json"),
        ("config.json", '{"a": "' + 2**20 * "x" + '"}', "is no run: it has no readable config.json"),
    ],
)
def test_a_folder_that_is_no_run_is_named(folder, name, content, expected):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError) as raised:
        experiment.load(folder)
    assert str(folder) in str(raised.value) and expected in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"colour": 3}, "unknown setting 'colour'"),
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean epochs?"),
        ({"lr": "fast"}, "--lr 'fast' must be float"),
        ({"lr": math.nan}, "--lr nan must be"),
        ({"lr": 10**400}, "--lr 1000"),
        ({"lr": [[]] * 1000}, "[], [], [], [], [], ... must be float, not list"),
        ({"data_set": "cats"}, "--data_set 'cats' is unknown"),
        ({"data_set": "folder:"}, "--data_set 'folder:' is unknown"),
        ({"data_set": "folder:\0"}, "--data_set 'folder:\\x00' is unknown"),
        ({"data_set": "folder:\ud800"}, "--data_set 'folder:\\ud800' is unknown"),
        ({"data_set": "folder:" + 5000 * "x"}, "is unknown"),
        ({"data_set": "folder:/dev/zero"}, "its image_shape is None"),
        ({"model": {"a": 1}}, "--model {'a': 1} must be str, not dict"),
        ({"epochs": True}, "--epochs True must be int, not bool"),
        ({"epochs": 10**30}, "--epochs 1000"),
        ({"num_pseudo_inputs": 10**9}, "--num_pseudo_inputs 1000000000 must be at least 1 and at most 1000000"),
        ({"network_size": 1e300}, "--network_size 1e+300 must be more than 0 and at most 64"),
        ({"gs_key": "../../etc"}, "--gs_key '../../etc' must be a folder name"),
        ({"activation": "__import__('os')"}, "--activation"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_setting_of_a_run_that_does_not_fit_is_named(folder, settings, expected):
    edit(folder, **settings)
    with pytest.raises(UserError) as raised:
        experiment.load(folder)
    assert str(folder) in str(raised.value) and expected in str(raised.value) and len(str(raised.value)) < 1500


@pytest.mark.parametrize(
    "shape", [None, 3, [8, 8], [8, 8, 1, 1], [8, 8, -1], [10**5, 10**5, 3], [8, 8.0, 1], [8, 8, "1"], {"a": 1}]
)
def test_an_image_shape_that_is_none_is_refused(folder, shape):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {"image_shape": shape}))
    with pytest.raises(UserError, match=r"its image_shape is"):
        experiment.load(folder)


@pytest.mark.keras
def test_a_path_in_a_config_json_is_read_only_when_images_are_asked_for(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    edit(folder, data_set=f"folder:{tmp_path}/pipe.npy")
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | {"image_shape": SHAPE}))
    run = experiment.load(folder)
    assert run.note == "" and run.image_shape == SHAPE
    with pytest.raises(UserError, match=r"best.safetensors does not fit .*No such file"):  # and not the pipe
        run.model  # noqa: B018
    with pytest.raises(data.DataError, match=r"pipe.npy is neither a folder nor"):
        run.images("test")


@pytest.mark.parametrize(
    "status",
    [
        None,
        "",
        "[]",
        "{}",
        '{"state": 3}',
        '{"state": "done"}',
        '{"state": "finished", "best_val_elbo": "x"}',
        '{"state": "finished", "best_val_elbo": NaN}',
        '{"state": "finished", "best_val_elbo": -Infinity}',
        f'{{"state": "finished", "best_val_elbo": {10**400}}}',
        '{"state": "finished", "epochs_done": "lots"}',
        '{"state": "finished", "best_epoch": 1.5}',
    ],
)
def test_a_status_that_says_nothing_is_left_out_of_account(folder, capsys, status):
    """It is written again when training goes on: config.json and last/ are what a run is."""
    (folder / "status.json").unlink()
    if status is not None:
        (folder / "status.json").write_text(status)
    run = experiment.load(folder)
    assert (run.state, run.status) == ("interrupted", {})
    assert ("status.json is damaged" in capsys.readouterr().err) is (status is not None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"backend": "torch"}, "its backend is 'torch'"),
        ({"backend": ["jax"]}, r"its backend is \['jax'\]"),
        ({"versions": [1]}, r"its versions is \[1\]"),
        ({"versions": {"keras": 3}}, "its versions is {'keras': 3}"),
        ({"data_sha256": None}, "its data_sha256 is None"),
    ],
    ids=str,
)
def test_what_stands_beside_the_settings_is_checked_too(folder, change, expected):
    record = json.loads((folder / "config.json").read_text())
    atomic.write_json(folder / "config.json", record | change)
    with pytest.raises(UserError, match=f"a run has a config.json that does not fit this version: {expected}"):
        experiment.load(folder)
    del record[next(iter(change))]
    atomic.write_json(folder / "config.json", record)
    with pytest.raises(UserError, match=f"does not fit this version: '{next(iter(change))}'"):
        experiment.load(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "epoch,val_elbo\n1,2\n",
        f"{HEAD}\n",
        f"{HEAD}\n1\n",
        f"{HEAD}\n1,x{8 * ',1'}\n",
        f'{HEAD}\n"1\n',
        "\xff",
    ],
)
def test_a_damaged_history_is_named(folder, content):
    (folder / "history.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"a run/history\.csv is damaged"):
        experiment.load(folder).history  # noqa: B018


def test_a_run_that_says_running_is_interrupted_unless_a_process_holds_it(folder):
    atomic.write_json(folder / "status.json", {"state": "running", "process": {"pid": 17, "host": "there"}})
    assert experiment.load(folder).state == "interrupted"  # it has never been held
    code = f"import experiment, time\nwith experiment.held({str(folder)!r}): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert experiment.load(folder).state == "running"
        with (
            pytest.raises(UserError, match="a run is being trained by process 17 on there; wait for it"),
            experiment.held(folder),
        ):
            pytest.fail("two hold it")
        process.kill()
    assert experiment.load(folder).state == "interrupted"  # the lock of a killed process does not stay
    with experiment.held(folder):
        pass


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"state": "finished"}, ""),
        ({"state": "stopped", "epochs_done": 3}, "of a run that stopped after 3 of 80 epochs"),
        ({"state": "failed", "epochs_done": 3}, "of a run that failed after 3 of 80 epochs"),
        ({"state": "running", "epochs_done": 3}, "of a run that was interrupted after 3 of 80 epochs"),
        ({"state": "?"}, ""),
    ],
)
def test_the_note_says_that_a_run_is_not_finished(folder, status, expected):
    edit(folder, epochs=80)
    atomic.write_json(folder / "status.json", status)
    assert experiment.load(folder).note == expected
    edit(folder, data_set="mnist", beta=0.5)
    said = "; ".join(filter(None, (expected, "trained with beta 0.5, scored with beta 1")))
    assert experiment.load(folder).note == said
    assert experiment.load(folder).on("caltech101").note.endswith(f", likelihood bernoulli; {said}")


def test_a_path_that_is_no_folder_is_no_run(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "nothing", tmp_path / "x" / ("y" * 300)):
        with pytest.raises(UserError, match=f"{path.name} is no run"):
            experiment.load(path)


def test_a_missing_history_is_a_sentence(folder):
    (folder / "history.csv").unlink()
    with pytest.raises(UserError, match="a run has no history yet"):
        experiment.load(folder).history  # noqa: B018


def test_the_data_folder_of_the_call_goes_before_that_of_training_which_may_be_gone(folder, tmp_path):
    edit(folder, data_dir=str(tmp_path))
    assert experiment.load(folder).data_dir == str(tmp_path)
    edit(folder, data_dir=str(tmp_path / "gone"))
    assert experiment.load(folder).data_dir is None and experiment.load(folder).dataset.image_shape == SHAPE
    with pytest.raises(data.DataError, match="elsewhere is not a folder"):
        experiment.load(folder, tmp_path / "elsewhere").dataset  # noqa: B018


def test_a_run_of_another_format_is_refused_and_its_version_named(folder):
    record = json.loads((folder / "config.json").read_text())
    for number in (FORMAT - 1, FORMAT + 1, "2", None, float(FORMAT), True):
        atomic.write_json(folder / "config.json", record | {"format": number, "git_commit": "1a2b3c"})
        expected = f"version '1a2b3c' wrote it, in format {number!r}; this version reads format {FORMAT}"
        with pytest.raises(UserError, match=expected):
            experiment.load(folder)


def test_a_run_of_a_version_that_knew_no_beta_had_one(folder):
    record, before = json.loads((folder / "config.json").read_text()), experiment.load(folder).config
    del record["config"]["beta"]
    atomic.write_json(folder / "config.json", record)
    assert experiment.load(folder).config == before and before.beta == 1


def test_images_that_are_not_the_run_s_are_binarized_as_its_own_are(folder):
    """Grey ones also where its own need not be, as they are binary in their files."""
    for own, name, expected in (
        ("staticmnist", "mnist", "dynamic"),
        ("staticmnist", "caltech101", "none"),
        ("mnist", "staticmnist", "dynamic"),
    ):
        edit(folder, data_set=own)
        run = experiment.load(folder).on(name)
        assert run.binarization == expected
        assert run.note == f"not the run's data but {name}, binarization {expected}, likelihood bernoulli"
    assert run.on("mnist5k").note.endswith(f", likelihood bernoulli; {data.DATA_SETS['mnist5k'].note}")
    with pytest.raises(UserError, match=r"trained on images \(28, 28, 1\), but those of cifar10 are \(32, 32, 3\)"):
        run.on("cifar10")
    with pytest.raises(UserError, match=r"--on mnist is the data set of .* itself; leave out --on"):
        run.on("mnist")


def test_the_training_images_of_a_run_are_those_that_it_was_trained_on(folder):
    edit(folder, max_train_images=33)
    run = experiment.load(folder)
    assert len(run.images("train")) == 33 and len(run.images("val")) == 300
    assert [len(run.images("train", n)) for n in (None, 5, 99)] == [33, 5, 33]
    assert set(run.index("train", 5)) < set(range(33))
    for n in (None, 5):  # of what is drawn for all
        np.testing.assert_array_equal(run.images("test", n), run.images("test")[run.index("test", n)])


@pytest.fixture
def weighty(folder):
    """The run with weights, and the model that they are of."""
    backend.start()
    run = experiment.load(folder)
    model = models.build(run.config, SHAPE, from_data=np.random.default_rng(3).random((5, *SHAPE), np.float32))
    save_weights(model, run.weights)
    return run, model


@pytest.mark.keras
def test_the_model_is_rebuilt_from_the_folder_alone(weighty):
    run, model = weighty
    assert len(model.get_weights()) == len(run.model.get_weights()) > 20
    for ours, theirs in zip(model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("executable", [pytest.param("''", marks=pytest.mark.slow), "None"])
def test_a_python_without_an_executable_loads_a_run(weighty, script, executable):
    """As a server, or a program in which Python is embedded, has it."""
    code = f"import sys; sys.executable = {executable}; import experiment; "
    code += "run = experiment.load(sys.argv[1]); print(run.model.embed(run.images('test', 2)).shape)"
    done = script("-c", code, weighty[0].path)
    assert (done.stdout, done.returncode) == ("(2, 3)\n", 0), done.stderr


@pytest.mark.keras
@pytest.mark.parametrize(
    "settings",
    [
        {"network_size": 0.5},
        {"latent_dim": 4},
        {"num_pseudo_inputs": 6},
        {"prior": "standard"},
        {"model": "hvae"},
    ],
    ids=str,
)
def test_weights_of_another_model_are_refused(weighty, settings):
    run = weighty[0]
    edit(run.path, **settings)
    with pytest.raises(UserError, match=r"a run/best\.safetensors does not fit .*a run/config\.json"):
        experiment.load(run.path).model  # noqa: B018


@pytest.mark.keras
@pytest.mark.parametrize("kept", [0, 100, 0.5, -1, None], ids=lambda kept: f"kept={kept}")
def test_a_truncated_or_missing_weights_file_is_named(weighty, kept):
    run = weighty[0]
    content = run.weights.read_bytes()
    run.weights.unlink()
    if kept is not None:
        run.weights.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else kept])
    with pytest.raises(UserError, match=r"a run/best\.safetensors does not fit") as raised:
        experiment.load(run.path).model  # noqa: B018
    assert "\n" not in str(raised.value)


@pytest.mark.keras
def test_a_config_that_describes_no_model_is_named(folder):
    backend.start()
    edit(folder, activation="nonsense")
    with pytest.raises(UserError, match=r"a run/config.json describes no model: unknown activation 'nonsense'"):
        experiment.load(folder).model  # noqa: B018


METRICS = {"split": "val", "estimator": "is", "tag": "is_S3", "num_images": 7, "log_px": -1.5}


def test_an_evaluation_lands_under_its_name_and_as_the_latest(folder):
    run = experiment.load(folder)
    path = run.save_evaluation(METRICS, {"index": np.arange(7)})
    later = run.save_evaluation(METRICS | {"split": "test", "tag": "quadrature"}, {"index": np.arange(7)})
    assert names_in(folder / "evaluations") == sorted(
        f"{name}.{ending}" for name in ("val_is_S3_N7", "test_quadrature_N7") for ending in ("json", "npz")
    )
    assert json.loads(path.read_text()) == METRICS
    assert (folder / "metrics.json").read_text() == later.read_text()


def test_an_evaluation_that_cannot_be_written_leaves_the_last_one(folder, monkeypatch):
    run = experiment.load(folder)
    run.save_evaluation(METRICS, {"index": np.arange(7)})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write the evaluation to .*a run: No space left on device"):
        run.save_evaluation(METRICS | {"log_px": -2.5}, {"index": np.arange(7)})
    assert json.loads((folder / "metrics.json").read_text()) == METRICS


def stored(folder, name="test_is_S3_N4", modified=0, weights=b"some weights", **changes):
    """Writes an evaluation of four images, some of its columns changed; returns the .npz."""
    (folder / "best.safetensors").write_bytes(b"some weights")
    (folder / "evaluations").mkdir(exist_ok=True)
    columns = {name: np.arange(4) / 2 - 7 for name in PER_IMAGE}
    columns |= {"index": np.array([3, 0, 8, 5])} | changes
    path = folder / "evaluations" / f"{name}.npz"
    np.savez_compressed(path, **{key: value for key, value in columns.items() if value is not None})
    path.with_suffix(".json").write_text(json.dumps({"weights_sha256": hashlib.sha256(weights).hexdigest()}))
    os.utime(path, (modified, modified))
    return path


def test_the_newest_evaluation_of_a_split_is_read_back(folder):
    run = experiment.load(folder)
    assert run.evaluation("test") is None
    stored(folder, "test_is_S9_N4", 20, log_px=np.full(4, -1.0))
    stored(folder, "test_ais_S1_T2_N4", 30, log_px=np.arange(4) - 2.5, khat=np.full(4, np.nan))
    stored(folder, "val_is_S9_N4", 40)
    stored(folder, "test_is_S99_N4", 50, weights=b"those of an earlier epoch")
    stored(folder, "test_is_S5_N4", 60, khat=None)  # of an older version
    found = run.evaluation("test")
    assert found.name == "test_ais_S1_T2_N4" and found.log_px.tolist() == [-2.5, -1.5, -0.5, 0.5]
    assert found.index.tolist() == [3, 0, 8, 5] and np.isnan(found.khat).all()
    assert run.evaluation("val").name == "val_is_S9_N4" and run.evaluation("train") is None
    stored(folder, "test_is_S3_N8", 1, **{name: np.arange(8.0) for name in PER_IMAGE}, index=np.arange(8))
    assert run.evaluation("test").name == "test_is_S3_N8"  # of more images, though older


@pytest.mark.parametrize(
    "changes",
    [
        {"log_px": np.array([1, np.nan, 2, 3])},
        {"log_px": np.arange(3.0)},
        {"ess": np.array(["a", "b", "c", "d"])},
        {"ess": np.arange(4)},
        {"khat": np.zeros((4, 1))},
        {"samples": np.array([None] * 4)},
        {"index": np.array([0, 1, 1, 2])},
        {"index": np.array([0, 1, -1, 2])},
        {"index": np.arange(4.0)},
        {"index": None},
    ],
)
def test_an_evaluation_that_makes_no_sense_is_passed_over(folder, changes):
    run, older = experiment.load(folder), "test_is_S1_N4"
    stored(folder, modified=2, **changes)
    assert run.evaluation("test") is None
    stored(folder, older, modified=1)
    assert run.evaluation("test").name == older


def test_a_damaged_evaluation_is_passed_over(folder, monkeypatch):
    run, path = experiment.load(folder), stored(folder)
    whole = path.read_bytes()
    for content in [b"", whole[:-1], whole[:200], b"\x93NUMPY" + whole, whole.replace(b"log_px", b"log_py")]:
        path.write_bytes(content)
        assert run.evaluation("test") is None
    for place in range(30, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        run.evaluation("test")
    path.write_bytes(whole)
    assert run.evaluation("test") is not None
    monkeypatch.setattr("experiment.run.MOST_EVALUATION", len(whole) - 1)
    assert run.evaluation("test") is None
    monkeypatch.undo()
    path.with_suffix(".json").write_text("{")
    assert run.evaluation("test") is None


def test_an_evaluation_that_unpacks_to_too_much_is_passed_over(folder, monkeypatch):
    monkeypatch.setattr(run, "MOST_EVALUATION", 10_000)
    path = stored(folder, more=np.zeros(100_000))
    assert path.stat().st_size < 10_000 and experiment.load(folder).evaluation("test") is None


def test_the_commit_is_that_of_the_code_or_unknown(tmp_path, monkeypatch):
    if (ROOT / ".git").exists():
        done = subprocess.run(["git", "rev-parse", "HEAD"], check=True, cwd=ROOT, capture_output=True, text=True)
        head = done.stdout.strip()
        assert git_commit() in (head, f"{head}+changes")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "experiment.py"))
    assert git_commit() is None


@pytest.mark.parametrize("name", ["models/__init__.py", "data.py", "runtime/__init__.py"])
@pytest.mark.parametrize("begin", ["sys.path.append({0!r})", "import {1}; sys.path.insert(0, {0!r})"])
def test_a_users_own_module_of_the_same_name_is_told(tmp_path, name, begin):
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    room = name.split("/")[0].removesuffix(".py")
    code = f"import sys; {begin.format(str(ROOT), room)}; import vampvae"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = f"module {room} is {own}, and not that of {ROOT}: start Python again with sys.path.insert(0, '{ROOT}')"
    assert f"\nImportError: {said}" in done.stderr


def test_a_users_own_folder_of_files_is_no_module(tmp_path):
    (tmp_path / "data").mkdir()
    code = f"import sys; sys.path.append({str(ROOT)!r}); import experiment"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
