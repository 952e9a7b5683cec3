"""differences.py: labels of runs, and groups of runs that differ in few settings."""

from types import SimpleNamespace

from experiment import Config
from experiment.differences import alike, groups, label, labels, varying


def test_labels_name_the_settings_in_which_runs_differ():
    configs = [Config(), Config(model="hvae", prior="vamp", lr=0.01), Config(lr=0.01)]
    assert varying(configs) == ["model", "prior", "lr"]
    assert labels(configs) == ["vae, standard, lr 0.0001", "hvae, vamp, lr 0.01", "vae, standard, lr 0.01"]
    assert labels([Config(seed=1), Config(seed=2)]) == ["seed 1", "seed 2"]
    assert labels([Config(), Config()]) == ["", ""]


def test_settings_that_mean_nothing_for_a_run_are_no_difference():
    few, many, standard = (
        Config(prior=prior, num_pseudo_inputs=k) for prior, k in (("mog", 3), ("mog", 5), ("standard", 9))
    )
    assert varying([few, standard]) == ["prior"] and varying([few, many, standard]) == ["prior", "num_pseudo_inputs"]
    assert labels([few, many, standard]) == ["mog, K 3", "mog, K 5", "standard"]


def test_labels_have_the_values_that_defaults_come_to():
    assert labels([Config(), Config(binarize="none")]) == ["binarize dynamic", "binarize none"]
    names = ("num_samples", "target_accept", "likelihood", "batch_size")
    assert label(Config(objective="amcvae"), names) == "samples 5, accept 0.8, batch_size 256, bernoulli"


def test_groups_differ_only_in_the_settings_named():
    runs = [SimpleNamespace(config=Config(seed=seed, lr=lr)) for seed, lr in ((0, 0.1), (0, 0.2), (1, 0.1))]
    assert groups(runs, "seed") == [[runs[0], runs[2]], [runs[1]]]
    assert groups(runs, "lr") == [runs[:2], runs[2:]] and groups(runs, "lr", "seed") == [runs]
    assert groups(runs, "lr", "seed", key=lambda run: run is runs[0]) == [runs[:1], runs[1:]]
    assert alike(Config(seed=1, lr=0.1), "seed") == Config(lr=0.1)
