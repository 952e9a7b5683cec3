"""docs/extend.md: its files are written out, trained, scored and drawn as it says; what is wrong in them is refused."""

import re

import numpy as np
import pytest
from conftest import ROOT, called, on_tensorflow, read, refused

import evaluate
import experiment
import plot
import train
import vampvae
from evaluation.importance import importance_sampling
from experiment import own
from experiment.flags import next_commands
from training import fit

pytestmark = pytest.mark.slow

FILES = dict(re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.DOTALL))
QUICK = ["--data_set", "digits", "--epochs", 1, "--batch_size", 399, "--track", "none", "--lr", 1e-3]
QUICK += ["--max_train_images", 798]


@pytest.fixture
def folder(tmp_path, monkeypatch, no_code):
    """A folder with the files of the page, the working directory."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_prior_is_short():
    assert len(FILES["my_prior.py"].strip().splitlines()) <= 28 and len(FILES) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "file", "cls", "more"),
    [
        ("prior", "my_prior.py", "Ring", ["--network", "mlp", "--hidden_units", 16]),
        pytest.param("network", "my_network.py", "Wide", ["--model", "hvae"], marks=on_tensorflow),
        pytest.param("objective", "my_objective.py", "Renyi", ["--network", "mlp"], marks=on_tensorflow),
    ],
)
def test_a_class_of_the_page_is_trained_scored_and_drawn(folder, capfd, monkeypatch, flag, file, cls, more):
    assert called(train.main, *QUICK, *more, f"--{flag}", f"{file}:{cls}") == 0
    printed = capfd.readouterr()
    run = folder / printed.out.strip()
    assert next(next_commands(str(run.relative_to(folder)), "--code", file)) in printed.err
    code = read(run / "config.json")["code"]
    assert code[flag]["file"] == file and f"{cls}-{code[flag]['sha256'][:8]}" in run.name
    monkeypatch.setattr(own, "_files", {})
    monkeypatch.setattr(own, "_classes", {})
    refused(capfd, evaluate.main, [run, "--max_images", 5], f"was trained with {flag} {cls} of {file}, of sha256")
    scores = vampvae.evaluate(str(run), code=file, max_images=5, estimator="is", num_samples=20)
    assert np.isfinite(scores["log_px"])
    assert called(plot.main, run, "--code", file, "--figures", "samples") == 0
    (folder / file).write_text(FILES[file] + "# changed\n")
    monkeypatch.setattr(own, "_files", {})
    capfd.readouterr()
    refused(
        capfd, train.main, ["--resume", run, "--epochs", 2, "--code", file], "is another file; put the former one back"
    )


PSEUDO = '''
from keras import layers, ops

from models.distributions import Mixture


class Mine:
    """A mixture that is no models.distributions.Mixture."""

    def __init__(self, *parts):
        self.mixture = Mixture(*parts)
        self.sample, self.log_prob = self.mixture.sample, self.mixture.log_prob


class Pseudo(layers.Layer):
    settings = ("num_pseudo_inputs",)
    has_pseudo_inputs = True

    def __init__(self, latent_dim, encode, pseudo_inputs):
        super().__init__()
        self.encode = encode
        self.pseudo_inputs = self.add_weight(shape=pseudo_inputs.shape, name="pseudo_inputs")
        self.pseudo_inputs.assign(pseudo_inputs)

    def distribution(self):
        q = self.encode(self.pseudo_inputs)
        weights = -ops.log(1.0 * q.mean.shape[0]) * ops.ones(q.mean.shape[0])
        return Mine(weights, q.mean, q.logvar)
'''


def test_a_prior_of_pseudo_inputs_that_is_no_mixture_of_ours_is_drawn(folder, capfd):
    (folder / "mine.py").write_text(PSEUDO)
    words = [*QUICK, "--network", "mlp", "--hidden_units", 16, "--num_pseudo_inputs", 7, "--prior", "mine.py:Pseudo"]
    assert called(train.main, *words) == 0
    run = capfd.readouterr().out.strip()
    assert called(plot.main, run, "--code", "mine.py", "--figures", "embedding_mean", "pseudoinputs") == 0
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) == 2, printed.err
    assert called(plot.main, run, "--code", "mine.py", "--figures", "pseudouse") == 2
    assert capfd.readouterr().err == f"{run}: such a run has no pseudouse\n"


def trained(folder, content, *words):
    (folder / "mine.py").write_text(content)
    return [*QUICK, "--network", "mlp", *words, "--prior", "mine.py:Ring", "--runs_dir", folder / "runs"]


RING = FILES["my_prior.py"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    def distribution(self):", "    def other(self):", "prior Ring lacks the method distribution"),
        ("        return self\n", "        return None\n", "Ring.distribution() returns None, without sample"),
        ("    def sample(", "    def draw(", "without sample"),
        ("def log_prob(self, z):", "def log_density(self, z):", "without log_prob"),
        ("- 2 * log_r ", "", "Ring is not normalised: its density integrates to"),
        ("+ 0.3 * random.normal", "+ 0.1 * random.normal", "Ring draws other samples than its density says"),
        ("class Ring", "import helper\n\nclass Ring", "fails: ModuleNotFoundError: No module named 'helper' (line 6)"),
        ("class Ring", "1 / 0\n\nclass Ring", "mine.py fails: ZeroDivisionError: division by zero (line 6)"),
        ("class Ring", "raise SystemExit\n\nclass Ring", "mine.py fails: SystemExit"),
        ("ops.exp(self.log_radius", "ops.exp(self.radius", "Ring fails (line 20): AttributeError: 'Ring' object"),
        ("latent_dim, encode, pseudo_inputs", "latent_dim", "Ring fails: TypeError:"),
    ],
)  # fmt: skip
def test_a_prior_that_does_not_keep_the_contract_is_refused(folder, capfd, old, new, expected):
    assert old in RING
    refused(capfd, train.main, trained(folder, RING.replace(old, new)), expected, folder / "runs")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("class Mine: pass", "objective Mine lacks the method outcome"),
        ("from models.objectives import Weighted\nclass Mine(Weighted):\n    logged = ('bound', 'other')\n"
         "    def bound(self, log_w): return log_w[0]", "Mine.outcome lacks 'other' among its logs"),
        ("from models.objectives import Weighted\nclass Mine(Weighted):\n    def bound(self, log_w): return log_w",
         "Mine.outcome has a loss of shape (1, 2) for 2 images, not (2,)"),
    ],
)  # fmt: skip
def test_an_objective_that_does_not_is_refused(folder, capfd, body, expected):
    (folder / "mine.py").write_text(body)
    words = [*QUICK, "--network", "mlp", "--objective", "mine.py:Mine", "--runs_dir", folder / "runs"]
    refused(capfd, train.main, words, expected, folder / "runs")


def train_config(folder, content, **settings):
    (folder / "mine.py").write_text(content)
    small = {"data_set": "digits", "network": "mlp", "epochs": 2, "lr": 0.05, "track": "none"}
    return experiment.Config(prior=own.name_of("prior", "mine.py:Ring"), runs_dir=str(folder), **(small | settings))


def test_a_trained_prior_is_checked_again_before_it_is_scored(folder, capfd):
    """A density may be normalised with its first weights alone."""
    wrong = RING.replace("- 2 * log_r ", "- 2 * log_r + self.log_radius")
    path = fit.train(train_config(folder, wrong))
    capfd.readouterr()
    refused(capfd, evaluate.main, [path, "--code", "mine.py"], "Ring is not normalised: its density integrates to")


@on_tensorflow
def test_a_prior_of_the_page_is_fitted_to_a_finished_run(folder, capfd):
    assert called(train.main, *QUICK, "--network", "mlp", "--hidden_units", 16) == 0
    source = capfd.readouterr().out.strip()
    assert called(train.main, "--refit_prior", "my_prior.py:Ring", source) == 0
    one = experiment.load(capfd.readouterr().out.strip())
    assert (
        one.name.endswith(f"_refit{experiment.load(source).weights_sha256[:8]}")
        and len(one.model.trainable_weights) == 1
    )
    estimate = importance_sampling(one.model, one.images("val", 4), 10)
    assert np.isfinite(estimate.log_px).all()


@pytest.mark.slow
@on_tensorflow
def test_workers_of_a_grid_get_path_and_checksum(folder, capfd):
    words = ["--network", "mlp", "--hidden_units", 16, "--prior", "standard", "my_prior.py:Ring", "--gs_key", "g"]
    assert called(train.main, *QUICK, *words) == 0
    printed = capfd.readouterr()
    assert printed.out.count("finished") >= 2 and "--gs_key g --code my_prior.py" in printed.err
