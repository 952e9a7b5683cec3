"""How a run is trained, in process, on digits: order, noise, callbacks, what is kept and when it stops."""

import dataclasses
import json
import math
import re
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import slow_on_jax, validated

import data
import experiment
import models
from data.dataset import Stored
from evaluation.ais import Annealing
from evaluation.compiled import NotFiniteError
from evaluation.importance import importance_sampling
from experiment import Config, presets
from experiment.flags import add_settings
from grids.configs import configs_of
from runtime import atomic, backend
from runtime.command import Parser
from runtime.errors import RunError, UserError
from training import batches, callbacks, fit
from training.batches import Batches, InOrder, as_tf_dataset
from training.exemplars import Exemplars
from training.memory import smaller
from training.progress import Progress, expected_time

on_both_backends = pytest.mark.keras  # the tests that show something of `fit`, at seconds of compilation each


CONV = {"network": "conv", "network_size": 0.25, "hidden_units": None}


def config(tmp_path, **settings):
    """A run that takes a second, of dense layers, whose steps are traced soonest."""
    small = {"data_set": "digits", "network": "mlp", "hidden_units": 16, "batch_size": 100, "epochs": 2, "lr": 3e-3}
    small |= {"prior": "vamp", "num_pseudo_inputs": 7, "max_train_images": 200, "runs_dir": str(tmp_path)}
    return Config(**small | settings)


def train(tmp_path, **settings):
    return experiment.load(fit.train(config(tmp_path, **settings)))


class Interfere(keras.callbacks.Callback):
    """Calls `act(model)` at the begin of an epoch."""

    def __init__(self, epoch, act):
        super().__init__()
        self.epoch, self.act = epoch, act

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.act(self.model)


def with_callback(monkeypatch, callback):
    """Adds a callback to the next fit, before the run's own."""
    fit = keras.Model.fit
    monkeypatch.setattr(
        keras.Model,
        "fit",
        lambda self, *a, callbacks, **k: fit(self, *a, callbacks=[callback, *callbacks], **k),
    )


def test_batches_are_a_permutation_that_depends_on_seed_and_epoch():
    images = np.arange(10, dtype="uint8").reshape(10, 1, 1, 1)
    split = data.Split(images, None, 1)

    def order(seed, epoch):
        batches = Batches(split, Config(batch_size=4, seed=seed))
        batches.start_epoch(epoch)
        assert [len(batches[i][0]) for i in range(len(batches))] == [4, 4, 2]
        return np.concatenate([batches[i][0] for i in range(len(batches))]).ravel().tolist()

    assert sorted(order(0, 0)) == list(range(10))
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@on_both_backends
def test_half_of_the_images_are_mirrored_by_seed_and_epoch():
    images = np.random.default_rng(0).integers(0, 256, (200, 2, 3, 1), "uint8")

    def mirrored(split=images, skip=0, epoch=0, **settings):
        """Which images are: {number: whether}."""
        batches = Batches(data.Split(split, None, 255), Config(batch_size=20, augment="flip", **settings))
        batches.start_epoch(epoch)
        batches.skip = skip
        found = np.concatenate([one for (one,) in map(batches.__getitem__, range(len(batches)))])
        if keras.backend.backend() == "tensorflow":
            np.testing.assert_array_equal(np.concatenate([one for (one,) in as_tf_dataset(batches)]), found)
        as_they_are = batches.split.grey(batches.left)
        flips = (found != as_they_are).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(found[flips], as_they_are[flips, :, ::-1])
        return dict(zip(batches.left.tolist(), flips.tolist(), strict=True))

    first = mirrored()
    assert 60 < sum(first.values()) < 140 and mirrored() == first
    assert len({tuple(sorted(mirrored(seed=s, epoch=e).items())) for s in (0, 1) for e in (0, 1)}) == 4
    assert (rest := mirrored(skip=3)) == {number: first[number] for number in rest} and len(rest) == 140
    assert mirrored(Stored(lambda number: images[number], np.arange(200), (2, 3, 1))) == first


@pytest.mark.parametrize("binarize", ["dynamic", "threshold"])
def test_plain_dense_networks_start_at_the_mean_of_the_training_images(tmp_path, binarize):
    one = config(tmp_path, network="dense", binarize=binarize)
    prepared = fit.prepare(one)
    mean = prepared.batches.split.grey().mean(axis=0)  # of 200 images
    begins = 1 / (1 + np.exp(-np.asarray(prepared.model.decoder.out.bias).reshape(mean.shape)))
    np.testing.assert_allclose(begins, np.clip(mean, 0.001, 0.999), atol=1e-5)


@on_both_backends
def test_a_run_is_a_function_of_its_seed(tmp_path):
    """Two trainings of the same config give the same history; another seed gives another."""
    same = [train(tmp_path / str(i)).history["val_elbo"] for i in range(2)]
    np.testing.assert_allclose(same[0], same[1], rtol=1e-5)
    assert abs(train(tmp_path, seed=1).history["val_elbo"][-1] - same[0][-1]) > 1e-3


@slow_on_jax
@on_both_backends
def test_the_kept_weights_are_the_best_by_validation_elbo(tmp_path, monkeypatch):
    """The last epoch is spoiled: what is loaded gives the best epoch's validation ELBO again."""

    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.optimizer.learning_rate = 1.0

    with_callback(monkeypatch, Spoil())
    run = train(tmp_path, epochs=3)
    val_elbo = run.history["val_elbo"]
    assert run.status["best_epoch"] == np.argmax(val_elbo) + 1 == 2
    np.testing.assert_allclose(validated(run)["elbo"], val_elbo[1], rtol=1e-5)


@on_both_backends
def test_history_adds_up_and_beta_weighs_the_rate_in_the_training_loss_alone(tmp_path):
    run = train(tmp_path, beta=4.0, beta_warmup=4)
    status, history = json.loads((run.path / "status.json").read_text()), run.history
    assert status["state"] == "finished" and status["epochs_done"] == 2 and math.isfinite(status["best_val_elbo"])
    terms = ("loss", "elbo", "rate", "distortion")
    assert list(history) == ["epoch", *(f"{s}_{t}" for s in ("train", "val") for t in terms), "seconds"]
    for split in ("train", "val"):
        bound = -history[f"{split}_rate"] - history[f"{split}_distortion"]
        np.testing.assert_allclose(history[f"{split}_elbo"], bound, rtol=1e-4)
    np.testing.assert_allclose(history["val_loss"], -history["val_elbo"], rtol=1e-5)
    beta = np.array([1.0, 2.0])
    expected = history["train_distortion"] + beta * history["train_rate"]
    np.testing.assert_allclose(history["train_loss"], expected, rtol=1e-3)


@on_both_backends
def test_the_history_counts_the_steps_that_are_left_out(tmp_path):
    run = train(tmp_path, skip_norm=1e-3)
    assert run.history["train_skipped"].tolist() == [2, 2]
    assert run.config.columns[-2:] == ("train_skipped", "seconds")
    assert len(set(run.history["val_elbo"])) == 1  # no weight has changed


def from_run(tmp_path, *words):
    """The Config of a run on digits with a tiny dense network that these flags change."""
    parser = Parser()
    add_settings(parser)
    small = "--data_set digits --network mlp --max_train_images 100 --epochs 1 --batch_size 50 --track none --runs_dir"
    return configs_of(parser.parse_args([*small.split(), str(tmp_path), *map(str, words)]))[0]


@pytest.mark.slow
@on_both_backends
def test_a_run_begins_with_the_best_weights_of_another(tmp_path):
    source = experiment.load(fit.train(from_run(tmp_path, "--lr", 0.01)))
    config = from_run(tmp_path, "--init_from", source.path, "--lr", 1e-30)
    assert config.training_id.endswith(f"_from{source.weights_sha256[:12]}")
    run = experiment.load(fit.train(config))
    np.testing.assert_allclose(run.history["val_elbo"], source.best_val_elbo, rtol=1e-5)
    assert run.record["config"]["init_hash"] == source.weights_sha256[:12] and run.config.init_from == str(source.path)
    for words, message in (("--latent_dim", 3), "is F32 .*, in the model F32"), (("--prior", "mog"), "it lacks prior/"):
        other = from_run(tmp_path, "--init_from", source.path, *words)
        with pytest.raises(UserError, match=f"--init_from .*: its best weights do not fit this run: .*{message}"):
            fit.train(other)
        assert not other.path.exists()
    shutil.copy(run.weights, source.weights)  # as if that had been trained anew
    with pytest.raises(UserError, match="when this run was named after them"):
        fit.train(dataclasses.replace(config, seed=1))
    source.weights.unlink()
    with pytest.raises(UserError, match=r"--init_from .* has no weights yet; train it for at least one epoch"):
        from_run(tmp_path, "--init_from", source.path)


@pytest.mark.slow
@on_both_backends
def test_diagnostics_change_no_number(tmp_path):
    """Beside norms of gradients, they say what the validation images are in bits, and which units are active."""
    dense = {"network": "mlp", "network_size": Config.network_size, "latent_dim": 3, "lr": 0.01, "ema": 0.5}
    plain, run = train(tmp_path / "a", **dense), train(tmp_path / "b", diagnostics="on", **dense)
    history, more = run.history, ["train_grad_norm", "val_active_units", "val_bits_per_dim"]
    assert list(history) == [*list(plain.history)[:-1], *more, "seconds"] and run.name == plain.name
    for name in [*plain.history][:-1]:
        np.testing.assert_allclose(history[name], plain.history[name], rtol=1e-6)
    assert np.all(history["train_grad_norm"] > 0) and set(history["val_active_units"]) <= {0, 1, 2, 3}
    np.testing.assert_allclose(history["val_bits_per_dim"], -history["val_elbo"] / 64 / math.log(2))
    means = np.asarray(run.model.embed(run.images("val")))  # of the best weights
    assert history["val_active_units"][run.status["best_epoch"] - 1] == np.sum(means.var(axis=0) > 0.01)


@on_both_backends
@pytest.mark.parametrize(("start", "beta"), [(0.0, 1.0), (0.0, 3.0), (2.0, 1.0)])
def test_the_warm_up_leads_from_its_start_to_beta(start, beta):
    config = Config(network_size=0.25, batch_size=2, beta=beta, beta_warmup=4, beta_start=start)
    state = callbacks.EpochState(config, Batches(data.Split(np.zeros((2, 4, 4, 1)), None, 1), config))
    model = models.build(config, (4, 4, 1))
    state.set_model(model)
    betas = []
    for epoch in range(6):
        state.on_epoch_begin(epoch)
        betas.append(float(model.beta))
    assert betas == [start + (beta - start) * share for share in (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)]


def test_the_weight_of_the_gradient_of_decisions_rises_from_0():
    config = Config(network="mlp", batch_size=2, objective="amcvae", num_steps=1, decision_warmup=4)
    state = callbacks.EpochState(config, Batches(data.Split(np.zeros((2, 4, 4, 1)), None, 1), config))
    state.set_model(models.build(config, (4, 4, 1)))
    weights = []
    for epoch in range(6):
        state.on_epoch_begin(epoch)
        weights.append(float(state.model.objective.decisions))
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@slow_on_jax
@on_both_backends
def test_validation_does_not_touch_the_training_noise(tmp_path, monkeypatch):
    """More validation batches draw more validation noise, and the training history stays the same."""
    plain = train(tmp_path / "a").history
    monkeypatch.setattr(batches, "VALIDATION_BATCH", 30)
    np.testing.assert_allclose(train(tmp_path / "b").history["train_elbo"], plain["train_elbo"], rtol=1e-5)


@slow_on_jax
@on_both_backends
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("iwae", "lmcvae")))
        for name in models.OBJECTIVES
        if name != "elbo"
    ],
)
def test_every_objective_trains_and_its_own_bound_is_monitored(tmp_path, name):
    settings = {"num_steps": 1} if models.OBJECTIVES[name].is_annealed else {}
    settings |= {"num_groups": 2} if name in models.owners("num_groups")["objective"] else {}
    settings |= {"hidden_units": None, "prior": "standard", "num_samples": 4, "epochs": 3, "beta_warmup": 2}
    run = train(tmp_path, objective=name, **settings)
    history = run.history
    assert tuple(history) == run.config.columns and "val_bound" in history
    assert history["val_bound"][-1] > history["val_bound"][0] + 1
    assert np.all(history["val_bound"] > history["val_elbo"]) and np.all(history["val_ess"] >= 1)
    np.testing.assert_allclose(history["val_loss"], -history["val_bound"], rtol=1e-5)
    assert run.status["best_epoch"] == np.argmax(history["val_bound"]) + 1
    assert validated(run)["bound"] == pytest.approx(history["val_bound"].max(), rel=1e-5)
    before = [np.array(weight) for weight in run.model.weights]
    run.model.evaluate(run.images("val")[:20], verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, run.model.weights, strict=True)]
    assert not any(changed)


@pytest.mark.slow
@slow_on_jax
@pytest.mark.parametrize(("name", "own"), [("lmcvae", {"skip_below": 0.1}), ("amcvae", {"decision_warmup": 2})])
def test_chains_of_the_monte_carlo_vae_code_train_and_each_of_their_steps_is_logged(tmp_path, name, own):
    chosen = ("objective", "step_rule", "lr_schedule", "clip_norm", "prior", *own)
    settings = {key: value for key, value in presets.preset(f"mcvae_mnist_{name}5").settings.items() if key in chosen}
    settings |= {"network": "mlp", "network_size": Config.network_size, "learn_schedule": "halving"} | own
    history = train(tmp_path, **settings, num_steps=2, latent_dim=3, batch_size=20, epochs=3).history
    assert history["val_bound"][-1] > history["val_bound"][0] + 1
    for k in (1, 2):
        assert np.all(np.diff(history[f"val_step_{k}"]) > 0)  # from 0.01 towards 0.1 / (1 + s)
        assert np.all((history[f"train_acceptance_{k}"] > 0.5) & (history[f"train_acceptance_{k}"] <= 1))


@pytest.mark.slow
def test_diverging_chains_are_warned_of_once(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("models.mcmc.DIVERGED", 0.1)
    settings = {"network": "mlp", "network_size": Config.network_size, "epochs": 3, "num_steps": 1}
    run = train(tmp_path, objective="lmcvae", step_size=1.0, **settings)
    assert run.history["train_diverged"][0] > 0.01 and np.isfinite(run.history["train_bound"]).all()
    said = capfd.readouterr().err
    assert said.count("of the Langevin steps diverged and were left out; lower --step_size 1.0") == 1


@pytest.mark.slow
@slow_on_jax
@on_both_backends
def test_log_px_of_validation_images_is_watched_and_changes_no_training(tmp_path, monkeypatch):
    """After the first and every third epoch, with averaged weights; it is near what importance sampling finds."""
    monkeypatch.setattr("training.watched.WATCHED", 6)
    monkeypatch.setattr("training.watched.ANNEALING", Annealing(16, 8, 2))
    settings = {"epochs": 3, "ema": 0.5}
    run, plain = train(tmp_path / "a", watch_log_px=3, **settings), train(tmp_path / "b", **settings)
    for name, values in plain.history.items():
        assert name == "seconds" or np.array_equal(run.history[name], values)
    watched = run.history["val_log_px"]
    assert watched[2] > watched[1] == watched[0]
    images = run.images("val")[data.subset(300, 12)[::2]]
    found = importance_sampling(run.model, images, 2000, 0, proposal="posterior").log_px.mean()
    assert run.status["best_epoch"] == 3 and abs(watched[2] - found) < 0.3


def test_patience_stops_and_does_not_count_the_warm_up(tmp_path):
    settings = {"epochs": 9, "patience": 1, "lr": 1e-30, "prior": "standard"}
    run = train(tmp_path, **settings)
    assert run.state == "finished" and len(run.history["epoch"]) == 2
    assert len(train(tmp_path, **settings, beta_warmup=4).history["epoch"]) == 5


@on_both_backends
@pytest.mark.parametrize(
    ("part", "term"),
    [("decoder", "distortion"), pytest.param("q_z", "(rate|distortion)", marks=pytest.mark.slow)],
)
def test_a_term_that_is_not_finite_stops_the_run_by_name(tmp_path, monkeypatch, part, term):
    """After two good epochs the weights of one part become NaN: the run stops at the first step of the third."""

    def spoil(model):
        for weight in getattr(model, part).trainable_variables:
            weight.assign(np.full(weight.shape, np.nan))

    with_callback(monkeypatch, Interfere(2, spoil))
    with pytest.raises(RunError, match=rf"epoch 3, step 1: {term}"):
        train(tmp_path, epochs=4, **CONV)
    run = experiment.load(config(tmp_path, epochs=4, **CONV).path)
    assert run.state == "failed" and run.status["message"].startswith("epoch 3, step 1: ")
    assert len(run.history["epoch"]) == 2 and run.status["best_epoch"] in (1, 2)
    assert np.isfinite(run.model.get_weights()[0]).all()


@pytest.mark.parametrize(
    ("settings", "tried"),
    [
        ({"lr": 30.0}, "try a lower --lr (now 30), a lower --clip_norm (now None) or a longer --beta_warmup (now 0)"),
        (
            {"clip_norm": 5.0, "beta_warmup": 3},
            "--clip_norm (now 5.0) or a longer --beta_warmup (now 3), as this run, ",
        ),
        ({"precision": "mixed_float16"}, "--beta_warmup (now 0), or --precision float32, as this run, if resumed"),
    ],
)
def test_what_is_not_finite_is_told_with_what_to_try(tmp_path, settings, tried):
    stop = callbacks.StopOnNonFinite(config(tmp_path, **settings), SimpleNamespace(done=lambda batch: batch + 1))
    stop.on_epoch_begin(1)
    with pytest.raises(RunError, match=r"^epoch 2, step 4: rate, log q\(z\|x\) - log p\(z\), is inf; ") as raised:
        stop.on_train_batch_end(3, {"rate": math.inf})
    assert tried in str(raised.value) and "(--overwrite starts it anew)" in str(raised.value)


def test_a_column_that_is_not_finite_stops_the_run_as_no_run_resumes_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks.weights, "not_finite", lambda model: None)
    one = config(tmp_path, diagnostics="on", objective="amcvae", num_steps=1)
    stop = callbacks.StopOnNonFinite(one, None)
    stop.set_model(SimpleNamespace(optimizer=None))
    stop.on_epoch_begin(1)
    stop.on_epoch_end(1, dict.fromkeys(one.columns, 1.0))
    for column, key in (
        ("train_grad_norm", "train_grad_norm"),
        ("train_step_1", "step_1"),
        ("val_step_1", "val_step_1"),
    ):
        with pytest.raises(RunError, match=rf"^epoch 2: {column} is inf; try"):
            stop.on_epoch_end(1, {"elbo": 1.0, key: math.inf})


def test_watching_a_weight_that_is_not_a_number_ends_the_run_by_its_name(tmp_path, monkeypatch):
    def failing(*args):
        raise NotFiniteError(3)

    monkeypatch.setattr(
        "training.watched.AnnealedSampling",
        lambda *args, **options: SimpleNamespace(tune=lambda images: None, log_px=failing),
    )
    with pytest.raises(
        RunError, match=r"^epoch 1: --watch_log_px: what is computed for image 3 is not a number; train"
    ):
        train(tmp_path, watch_log_px=3)


@pytest.mark.slow
def test_gradients_that_are_never_finite_end_a_run_whose_loss_is_scaled(tmp_path, monkeypatch):
    """The first ones overflow, which is no failure; nothing would ever be trained once the scale is next to 0."""
    settings = {"precision": "mixed_float16", "epochs": 3}
    assert train(tmp_path, **settings).state == "finished"
    with_callback(monkeypatch, Interfere(1, lambda model: model.optimizer.dynamic_scale.assign(1e-9)))
    with pytest.raises(RunError, match="epoch 2: gradients are not finite even with the loss scaled by 1e-09"):
        train(tmp_path, seed=1, **settings)


@on_both_backends
def test_nan_weights_that_relu_hides_are_found_before_they_are_stored(tmp_path, monkeypatch):
    def spoil(model):
        model.top_prior.pseudo_inputs.assign(np.full(model.top_prior.pseudo_inputs.shape, np.nan))

    with_callback(monkeypatch, Interfere(1, spoil))
    with pytest.raises(RunError, match=r"epoch 2(: weight .* is not finite|, step 1: )"):
        train(tmp_path, **CONV)
    assert experiment.load(config(tmp_path, **CONV).path).status["best_epoch"] == 1


def test_ctrl_c_keeps_the_finished_epochs(tmp_path, monkeypatch):
    def interrupt(model):
        raise KeyboardInterrupt

    with_callback(monkeypatch, Interfere(1, interrupt))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, epochs=5)
    run = experiment.load(config(tmp_path, epochs=5).path)
    assert run.state == "stopped" and len(run.history["epoch"]) == 1 == run.status["epochs_done"]
    assert run.model.reconstruct(run.images("val")[:2]).shape == (2, 8, 8, 1)


def test_a_full_disk_is_an_error_in_one_sentence(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with_callback(monkeypatch, Interfere(1, lambda model: monkeypatch.setattr(atomic.os, "fsync", full)))
    with pytest.raises(RunError, match="can no longer be written: No space left on device"):
        train(tmp_path, epochs=3)
    run = experiment.load(config(tmp_path, epochs=3).path)
    assert len(run.history["epoch"]) == 1 and not list(run.path.rglob(".*.part"))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"batch_size": 201}, "--batch_size 201 is more than the 200 training images"),
        ({"num_pseudo_inputs": 201}, "--num_pseudo_inputs 201 is more than the 200"),
        ({"prior": "exemplar"}, "--num_exemplars 500 is more than the 200 training images; make it smaller"),
        ({"max_train_images": 1198}, "--max_train_images 1198 is more than the 1197"),
        ({"accumulate": 5}, "--accumulate 5 is more than the 4 steps there are"),
        ({"activation": "nonsense"}, "unknown activation"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(tmp_path, settings, word):
    with pytest.raises(UserError, match=word):
        train(tmp_path, **CONV | settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, "--batch_size 100, --num_pseudo_inputs 7 or --network_size 0.25"),
        ({"batch_size": 3}, "--num_pseudo_inputs 7, --batch_size 3 or --network_size 0.25"),
        ({"prior": "standard"}, "--batch_size 100 or --network_size 0.25"),
    ],
    ids=str,
)
def test_out_of_memory_names_the_settings_to_lower(tmp_path, monkeypatch, settings, flags):
    def exhausted(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1099511627776 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "fit", exhausted)
        with pytest.raises(RunError, match=f"^out of memory in a training step; lower {flags}$"):
            train(tmp_path, **CONV | settings)
    status = experiment.load(config(tmp_path, **CONV | settings).path).status
    assert status["state"] == "failed" and status["message"].endswith(flags)


@on_both_backends
def test_out_of_memory_in_validation_does_not_name_the_batch(tmp_path, monkeypatch):
    def exhausted(self, *_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1099511627776 bytes.")

    monkeypatch.setattr(keras.Model, "make_test_function", lambda self, **_: setattr(self, "test_function", exhausted))
    with pytest.raises(
        RunError, match=r"^out of memory in a validation step; lower --num_pseudo_inputs 7 or --network"
    ):
        train(tmp_path, **CONV)


@on_both_backends
def test_out_of_memory_while_the_model_is_made_is_an_error_in_one_sentence(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1099511627776 bytes.")

    monkeypatch.setattr(fit.models, "build", exhausted)
    monkeypatch.setattr(fit.models, "blank_weights", lambda *_: {})
    with pytest.raises(UserError, match="out of memory before the first step; lower --num_pseudo_inputs 7 or --netw"):
        train(tmp_path, **CONV)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (2**17, "weights and optimizer alone need .* GiB.*lower --num_pseudo_inputs 7 or --network_size 0.25"),
        (2**20, "a validation step needs some .* GiB.*lower --num_pseudo_inputs 7 or --network_size"),
        (2**20, "a training step needs some .* GiB.*lower --batch_size 300, --num_pseudo_inputs 7 or --network_size"),
    ],
)
def test_a_run_that_does_not_fit_into_memory_is_refused_before_it_begins(tmp_path, monkeypatch, memory, message):
    monkeypatch.setattr("training.memory.memory", lambda: memory)
    with pytest.raises(UserError, match=message):
        train(tmp_path, batch_size=300 if "training" in message else 100, max_train_images=400, **CONV)
    assert list(tmp_path.iterdir()) == []


def test_a_standard_prior_ignores_the_number_of_pseudo_inputs(tmp_path):
    assert not fit.prepare(config(tmp_path, prior="standard", num_pseudo_inputs=5000)).model.top_prior.weights


@pytest.mark.parametrize(("binarize", "values"), [("none", 17), ("threshold", 2)])
def test_pseudo_inputs_start_as_training_images(tmp_path, binarize, values):
    _, batches, _, model = fit.prepare(config(tmp_path, binarize=binarize))
    split = batches.split
    u = np.asarray(model.top_prior.pseudo_inputs)
    images = {image.tobytes() for image in split.grey()}
    assert len({one.tobytes() for one in u}) == 7 and all(one.tobytes() in images for one in u)
    assert 2 <= len(np.unique(split.grey())) <= values and not model.dynamic


def test_random_pseudo_inputs_have_the_mean_and_the_deviation_of_their_data_set():
    settings = Config(prior="vamp", pseudo_init="random", num_pseudo_inputs=100)
    split = data.Split(np.zeros((1, 10, 10, 1), "uint8"), None, 255)
    u = fit._first_pseudo_inputs(settings, SimpleNamespace(pseudo_pixels=(0.4, 0.05)), split)
    assert (u.mean(), u.std()) == (pytest.approx(0.4, abs=0.002), pytest.approx(0.05, abs=0.002))
    u = fit._first_pseudo_inputs(settings, SimpleNamespace(pseudo_pixels=(0.05, 0.4)), split)
    assert (u.min(), u.max()) == (0, 1) and u.dtype == np.float32


def test_the_norm_of_an_epoch_s_gradients_is_the_mean_over_its_steps(monkeypatch):
    monkeypatch.setattr(callbacks, "watched", lambda optimizer: (30.0, 2.0))
    watch = callbacks.Watch(Config(), SimpleNamespace(steps=5), None, None)
    watch.set_model(SimpleNamespace(optimizer=None))
    watch.on_epoch_end(0, logs := {})
    assert logs == {"train_skipped": 2.0, "train_grad_norm": 6.0}


def test_held_out_images_come_in_order_and_the_last_batch_is_smaller():
    images = np.random.default_rng(0).random((7, 3, 2, 1))
    batches = InOrder(images, 3)
    assert [len(x) for (x,) in (batches[index] for index in range(len(batches)))] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([batches[index][0] for index in range(3)]), images)


@on_both_backends
@pytest.mark.parametrize("stored", [False, True])
def test_fit_gets_each_epoch_in_its_order_and_a_dataset_that_does_not_tune_itself(stored):
    images = np.arange(250, dtype="uint8").reshape(10, 5, 5, 1)
    if stored:
        images = Stored(images.__getitem__, np.arange(10), images.shape[1:])
    batches = Batches(data.Split(images, None, 255), Config(batch_size=4))
    given = as_tf_dataset(batches)
    for epoch, skip in ((0, 0), (1, 0), (1, 1)):
        batches.start_epoch(epoch)
        batches.skip = skip
        given = as_tf_dataset(batches) if skip else given  # a fit of its own
        found = [np.asarray(given_images) for (given_images,), _ in zip(given, range(len(given)), strict=False)]
        assert [len(one) for one in found] == [4, 4, 2][skip:]
        np.testing.assert_array_equal(np.concatenate(found), batches.split.grey(batches.order[4 * skip :]))
    assert len(given) == 2
    if keras.backend.backend() == "tensorflow":
        assert given.options().autotune.enabled is False  # its thread is waited for


def test_only_dynamic_binarization_draws_in_the_model(tmp_path):
    _, batches, _, model = fit.prepare(config(tmp_path))
    split = batches.split
    assert model.dynamic and len(np.unique(split.grey())) > 2


@pytest.mark.parametrize(
    ("step", "epochs", "said"),
    [(0.1, 10, "expected time: 1 min 47 s (10 epochs of 100 steps, 0.1 s a step)"), (1.0, 250, "7 h 24 min")],
)
def test_the_expected_time_names_flags_only_where_it_is_hours(step, epochs, said):
    text = expected_time(step, epochs, 100, 20, Config(prior="vamp", epochs=epochs))
    assert text.startswith(said) or said in text
    assert ("--num_pseudo_inputs" in text and "--network_size" in text) == (epochs == 250)


@pytest.mark.parametrize(
    ("settings", "with_batch", "expected"),
    [
        ({}, True, "lower --batch_size 256 or --network_size 4.0"),
        ({"objective": "iwae"}, True, "lower --batch_size 256, --num_samples 5 or --network_size 4.0"),
        ({"objective": "iwae"}, False, "lower --network_size 4.0"),  # more samples make the validation batch smaller
        (
            {"objective": "amcvae", "prior": "vamp", "num_pseudo_inputs": 9000},
            True,
            "lower --num_pseudo_inputs 9000, --batch_size 256, --num_samples 5 or --network_size 4.0",
        ),
    ],
)
def test_settings_to_lower_are_named_by_their_cost(settings, with_batch, expected):
    assert smaller(Config(**settings), with_batch) == expected


@pytest.mark.parametrize(
    ("has_gpu", "network", "expected"),
    [(False, "mlp", fit.MANY), (False, "conv", 1), (True, "conv", fit.MANY)],
)
def test_auto_runs_several_steps_at_once_where_they_are_short(tmp_path, monkeypatch, has_gpu, network, expected):
    monkeypatch.setattr(backend, "has_gpu", lambda: has_gpu)
    parser = Parser()
    add_settings(parser)
    words = ["--steps_per_execution", "auto", "--network", network, "--data_set", "digits", "--runs_dir"]
    (made,) = configs_of(parser.parse_args([*words, str(tmp_path)]))
    assert fit.prepare(made).model.steps_per_execution == expected


@pytest.mark.parametrize(("first", "expected"), [(0, 10), (40, 50)])
def test_the_expected_time_is_said_where_an_epoch_is_one_call(monkeypatch, capfd, first, expected):
    batches = SimpleNamespace(steps=3, done=lambda batch: 3)
    with Progress(Config(data_set="digits", epochs=90), batches, 1, first) as callback:
        for epoch in range(first, 90):
            callback.on_epoch_begin(epoch)
            callback.on_train_batch_end(2, {"elbo": -98.765})
            callback.on_epoch_end(epoch, {"val_elbo": -97.654})
            assert bool(said := capfd.readouterr().out) == (epoch == expected)
            assert not said or f"({90 - first} epochs of 3 steps, " in said


@pytest.mark.parametrize(("every", "on_terminal"), [(60.0, False), (1e-9, False), (60.0, True)])
def test_a_training_prints_a_bar_or_a_line_now_and_then_in_the_same_words(monkeypatch, capfd, every, on_terminal):
    monkeypatch.setattr("runtime.progress.EVERY", every)
    monkeypatch.setattr("sys.stderr.isatty", lambda: on_terminal)
    batches = SimpleNamespace(steps=2, done=lambda batch: batch + 1)
    with Progress(Config(data_set="digits", epochs=4), batches, 1) as callback:
        for epoch in (0, 1):
            callback.on_epoch_begin(epoch)
            for batch in (0, 1):
                callback.on_train_batch_end(batch, {"elbo": -98.765})
            callback.on_epoch_end(epoch, {"val_elbo": -97.654})
    printed = capfd.readouterr().err
    last = r"epoch 2.00 of 4, (00:00 so far, )?\d\d:\d\d left, elbo=-98.77, val_elbo=-97.65\s*\n"
    assert printed == "" if every == 60 and not on_terminal else re.search(last, printed)
    assert ("\r" in printed) == on_terminal


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resampled_prior_is_validated_and_kept_with_the_normaliser_of_the_weights_that_are(tmp_path, ema):
    prior = train(tmp_path, prior="lars", epochs=1, ema=ema).model.top_prior
    kept = float(prior.log_z)
    assert prior.renormalise()["log_z"] == pytest.approx(kept, abs=1e-5)
    assert kept != pytest.approx(np.log(0.5), abs=1e-4)


def test_exemplars_are_the_nearest_of_half_of_a_step_and_random_ones():
    """Of 40 images on a line, in an order of their own; a function of (seed, epoch, step) alone."""
    order = np.random.default_rng(0).permutation(40)
    means = order[:, None].astype("float32") ** 1.1  # so that no two are equally near
    one = Exemplars(Config(prior="exemplar", num_exemplars=12, batch_size=3), 40)
    assert len(one.of(np.arange(3), 0)[0]) == 12 and not one.of(np.arange(3), 0)[1].any()
    one.start_epoch(1, means)
    distances = np.abs(means - means.T) + 1e9 * np.eye(40)
    np.testing.assert_array_equal(np.sort(one.nearest), np.sort(np.argsort(distances)[:, :2]))
    which, is_near = one.of(np.array([4, 30]), 2)
    assert set(which[is_near == 1]) == set(one.nearest[[4, 30]].ravel()) and len(set(which)) == 12
    np.testing.assert_array_equal(which, one.of(np.array([4, 30]), 2)[0])
    assert set(which) != set(one.of(np.array([4, 30]), 3)[0])
    many, is_near = one.of(np.arange(20), 0)
    assert is_near.sum() == 6 and len(set(many)) == 12


def test_candidates_and_exemplars_are_drawn_from_streams_of_their_own(monkeypatch):
    """NumPy takes a missing index for 0."""
    states, stream = [], Config.stream

    def noted(self, *use):
        found = stream(self, *use)
        states.append(tuple(found.generate_state(4)))
        return found

    monkeypatch.setattr(Config, "stream", noted)
    one = Exemplars(Config(prior="exemplar", num_exemplars=12, batch_size=3), 40)
    for epoch in (0, 1):
        one.start_epoch(epoch, np.zeros((40, 2), "float32"))
        for step in range(3):
            one.of(np.arange(3), step)
    assert len(set(states)) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{"ema": 0.0}, {"ema": 0.9}, {"validation": "none"}, {"validation": "none", "ema": 0.9}]
)
def test_exemplars_are_kept_as_means_by_the_weights_that_are(tmp_path, more):
    """So scores need no training images."""
    run = train(tmp_path, prior="exemplar", num_exemplars=50, batch_size=90, **more)
    np.testing.assert_allclose(run.history["train_loss"], -run.history["train_elbo"], rtol=1e-5)  # by images
    kept = np.array(run.model.top_prior.means)
    grey = run.dataset.split("train").grey(slice(200))
    run.model.top_prior.refresh(lambda part: grey[part])
    np.testing.assert_allclose(run.model.top_prior.means, kept, rtol=1e-4, atol=1e-5)
    assert kept.shape == (200, 2) and np.ptp(kept, axis=0).min() > 0
    record = run.path / "config.json"
    record.write_text(record.read_text().replace('"train_images": 200', '"train_images": 20'))
    with pytest.raises(UserError, match=r"prior/means is F32 \(200, 2\), in the model F32 \(20, 2\)"):
        experiment.load(run.path).model  # noqa: B018
