"""A prior fitted to the aggregated posterior of a finished run, in process, on digits."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import called, read, refused

import evaluate
import experiment
import train
from evaluation import score, tables
from experiment import Config, sources
from experiment.differences import groups
from experiment.flags import words_of
from experiment.weights import opened
from grids import leaderboard
from plotting.comparisons import of_priors
from runtime.errors import UserError
from training import fit

pytestmark = pytest.mark.slow

SMALL = {"data_set": "digits", "network": "mlp", "hidden_units": 16, "batch_size": 100, "epochs": 1, "lr": 3e-3}
SMALL |= {"max_train_images": 200, "num_pseudo_inputs": 7, "latent_dim": 4, "track": "none"}


def arrays_of(run):
    with opened(run.weights) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run of a vae and of an hvae, which no test changes."""
    place = str(tmp_path_factory.mktemp("runs"))
    settings = {"vae": {"beta": 2.0, "beta_warmup": 1, "prior": "vamp"}, "hvae": {"objective": "iwae"}}
    return {model: experiment.load(fit.train(Config(**(SMALL | {"model": model, "runs_dir": place} | more))))
            for model, more in settings.items()}  # fmt: skip


@pytest.fixture
def source(trained, tmp_path):
    """A copy of the vae, which a test may change."""
    return experiment.load(shutil.copytree(trained["vae"].path, tmp_path / trained["vae"].name))


@pytest.mark.keras
@pytest.mark.parametrize(
    ("model", "prior"),
    [
        *(("vae", "mog"), ("hvae", "vamp"), ("vae", "flow")),
        *(pytest.param("vae", prior, marks=pytest.mark.slow) for prior in ("lars", "exemplar", "vampmixture")),
    ],
)
def test_a_refit_changes_no_bit_of_q_and_of_the_decoder(trained, model, prior):
    source = trained[model]
    few = ("--num_exemplars", 20) if prior == "exemplar" else ()
    assert called(train.main, "--refit_prior", prior, source.path, "--epochs", 3, "--lr", 0.01, *few) == 0
    (run,) = leaderboard.runs_in(source.path.parent.glob(f"*_{model}_{prior}_*refit*"))
    assert run.config.refit == sources.named(source) == f"{source.name}@{source.weights_sha256}"
    assert run.name.endswith(f"_refit{source.weights_sha256[:8]}") and run.state == "finished"
    before, after = arrays_of(source), arrays_of(run)
    kept = [name for name in after if not name.startswith("prior/")]
    assert "decoder/out/kernel" in kept and set(kept) == {name for name in before if not name.startswith("prior/")}
    for name in set(kept) - {"beta"}:
        assert before[name].tobytes() == after[name].tobytes(), name
    moving, of_prior = run.model.trainable_weights, run.model.top_prior.trainable_weights
    assert moving and {id(weight) for weight in moving} == {id(weight) for weight in of_prior}
    history = run.history
    assert len(set(history["val_rate"])) == 3 and (run.config.beta_warmup, run.config.objective) == (0, "elbo")
    np.testing.assert_allclose(history["val_distortion"], history["val_distortion"][0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.keras
def test_a_stopped_refit_resumes_without_its_source(source, tmp_path, monkeypatch):
    """Its first state has the weights of the source; also where none of its own was written yet."""

    def stop(*_):
        raise KeyboardInterrupt

    words = ["--refit_prior", "mog", source.path, "--epochs", 2]
    monkeypatch.setattr(fit, "_fit", stop)
    assert called(train.main, *words) == 130
    monkeypatch.undo()
    before = arrays_of(source)
    shutil.rmtree(source.path)
    (folder,) = tmp_path.glob("*refit*")
    assert called(train.main, "--resume", folder, "--epochs", 4) == 0
    assert called(train.main, "--resume", folder) == 0
    assert arrays_of(experiment.load(folder))["decoder/out/kernel"].tobytes() == before["decoder/out/kernel"].tobytes()
    assert called(train.main, "--resume", folder, "--epochs", 3) == 0
    longer = next(tmp_path.glob("*epochs3*"))
    assert arrays_of(experiment.load(longer))["decoder/out/kernel"].tobytes() == before["decoder/out/kernel"].tobytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["standard", "RUN"], "prior standard has no weights that could be fitted"),
        (["vampdata", "RUN"], "prior vampdata has no weights that could be fitted"),
        (["nonsense", "RUN"], "--prior 'nonsense' is unknown; choose from standard, mog"),
        (["mog", "nowhere"], "nowhere is no run: it has no readable config.json"),
        (["mog", "RUN", "--latent_dim", 3], "--latent_dim 3 cannot be given with --refit_prior"),
        (["mog", "RUN", "--prior", "flow"], "--prior flow cannot be given with --refit_prior"),
        (["mog", "RUN", "--precision", "mixed_float16"], "cannot be given with --refit_prior"),
        (["mog", "RUN", "--init_from", "RUN"], "cannot be given with --refit_prior"),
        (["mog", "RUN", "--jobs", 2], "--jobs 2 cannot be given with --refit_prior"),
        (["mog", "RUN", "--gs_key", "key"], "does not go with --refit_prior, whose run lies beside RUN"),
        (["mog", "RUN", "--runs_dir", "new"], "--runs_dir new does not go with --refit_prior"),
        (["mog", "RUN", "--resume", "RUN"], "cannot be given with --resume"),
        (["mog", "RUN", "--lr", 1, 2], "--lr 1.0 2.0 is more than the one value that --refit_prior takes"),
        (["mog", "RUN", "--num_couplings", 8], "--num_couplings 8 does not go with --prior mog, but with flow"),
        (["mog"], "expected 2 arguments"),
    ],
)
def test_what_cannot_be_fitted_is_refused(source, tmp_path, capfd, words, expected):
    words = [source.path if word == "RUN" else word for word in words]
    refused(capfd, train.main, ["--refit_prior", *words], expected)
    assert list(tmp_path.iterdir()) == [source.path]


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("status.json", {"state": "stopped"}, "is stopped, not finished; finish it first: python train.py --resume"),
        ("config.json", {"format": 3}, "in format 3; this version reads format"),
        ("best.safetensors", None, "is finished, but has no best.safetensors to start from"),
    ],
)
def test_a_source_that_is_not_whole_is_refused(source, tmp_path, capfd, file, change, expected):
    if change is None:
        (source.path / file).unlink()
    else:
        (source.path / file).write_text(json.dumps(read(source.path / file) | change))
    refused(capfd, train.main, ["--refit_prior", "mog", source.path], expected)
    assert list(tmp_path.iterdir()) == [source.path]


def test_a_deep_run_is_refused(tmp_path):
    deep = experiment.run.Run.__new__(experiment.run.Run)
    deep.path, deep.config, deep.data_dir = tmp_path, Config(model="ladder"), None
    with pytest.raises(UserError, match="is a ladder, whose prior belongs to its decoder"):
        sources.refitted(deep, "mog", {})


@pytest.mark.parametrize("value", ["", "x", "../x@" + "0" * 64, "x@" + "0" * 63, "x@" + "G" * 64])
def test_a_source_is_named_by_id_and_checksum(value):
    with pytest.raises(UserError, match=r"--refit .* must be ID@SHA256"):
        Config(refit=value)


def test_the_flags_of_a_refit_name_its_source(source):
    config = sources.refitted(source, "mog", {"epochs": 3, "num_pseudo_inputs": 5})
    words = words_of(config)
    assert words[:3] == ["--refit_prior", "mog", str(source.path.resolve())]
    args = dict(zip(words[3::2], words[4::2], strict=True))
    assert args["--epochs"] == "3" and args["--num_pseudo_inputs"] == "5" and "--latent_dim" not in args
    assert config.training_id != dataclasses.replace(config, refit="x@" + "0" * 64).training_id


def test_figures_of_priors_show_a_refit_beside_its_source(trained):
    source = trained["vae"]
    config = sources.refitted(source, "mog", {})
    alike = [SimpleNamespace(config=one) for one in (dataclasses.replace(source.config, beta_warmup=0), config)]
    assert len(groups(alike, *of_priors())) == 1


def test_a_comparison_says_what_is_the_priors():
    def scored(name, log_px, refit=None, prior="standard"):
        values = np.array([log_px, log_px + 1.0])
        config, estimate = Config(prior=prior, refit=refit), SimpleNamespace(log_px=values, elbo=values)
        metrics = {"images_sha256": "", "log_px_se": 0.0, "weights_sha256": "0" * 64}
        return score.Scored(name, config, None, metrics, None, estimate, [], "")

    found = [scored("a", -9.0), scored("b", -8.0, "a@" + "0" * 64, "mog"), scored("c", -6.0, prior="mog")]
    assert list(tables.of_priors(found)) == [
        "b keeps q(z|x) and p(x|z) of a; its prior alone changes log p(x) by +1.00 nats (se 0)\n",
        "  c differs by +3.00 nats; the other +2.00 come from training q(z|x) and p(x|z) with this prior\n",
    ]
    assert not list(tables.of_priors([found[0], found[2]]))
    of_one = [one._replace(estimate=SimpleNamespace(log_px=np.zeros(1), elbo=np.zeros(1))) for one in found[:2]]
    assert next(tables.of_priors(of_one)).endswith(" changes log p(x) by +0.00 nats\n")


def test_a_refit_is_scored_as_any_run(trained, capfd):
    source = trained["vae"]
    assert called(train.main, "--refit_prior", "mog", source.path, "--epochs", 3, "--lr", 0.01) == 0
    (run,) = leaderboard.runs_in(source.path.parent.glob("*_vae_mog_*refit*"))
    words = [source.path, run.path, "--compare", "--max_images", 5, "--num_samples", 20]
    assert called(evaluate.main, *words) == 0
    assert "its prior alone changes log p(x) by" in capfd.readouterr().out
