"""Nothing that was trained is lost: an interrupted run resumes as if it had not been interrupted, bit for bit."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import ROOT, as_flags, complaints, first_on_both, slow_on_jax, validated
from safetensors.numpy import load_file

import experiment
import train
from experiment import Config
from experiment.folder import _set_aside, finish_replacing
from grids.configs import configs_of
from runtime import internals
from runtime.command import STOPPED, STOPPING, Parser
from runtime.errors import RunError, UserError
from training import callbacks, checkpoint, fit, optimizers
from training.patience import Patience, Plateau
from training.writer import RunWriter

SMALL_RUN = {
    "model": "vae",  # whose steps, with dense layers, are traced in a third of the time
    "prior": "vamp",
    "data_set": "digits",
    "network": "mlp",
    "batch_size": 30,  # 4 steps, the last one short
    "epochs": 4,
    "lr": 1e-3,
    "num_pseudo_inputs": 7,
    "max_train_images": 100,
    "beta_warmup": 3,
    "steps_per_execution": 1,  # so that it can be interrupted behind each
}
PLAIN = {"model": "vae", "prior": "standard"}  # whose steps are traced fastest


def config(folder, **settings):
    return Config(**(SMALL_RUN | {"runs_dir": str(folder)} | settings))


def parsed(words):
    parser = Parser()
    train.add_arguments(parser)
    return parser.parse_args(words)


def called(*words):
    """The exit code of train.py."""
    try:
        return train.main([str(word) for word in words])
    except SystemExit as exit_:
        return exit_.code


def without_seconds(path):
    """history.csv but for the last column, as text."""
    lines = (path / "history.csv").read_text().splitlines()
    assert lines[0].endswith(",seconds")
    return [line.rsplit(",", 1)[0] for line in lines]


def numbers_of(path):
    """All numbers of a finished run: its history but for seconds, every variable, and the best weights."""
    arrays = load_file(checkpoint.newest(path / "last")[0])
    best = {name: array.tobytes() for name, array in load_file(path / "best.safetensors").items()}
    del arrays["history/seconds"]
    arrays = {name: array.tobytes() for name, array in arrays.items()}
    assert best == {name.removeprefix("best/"): arrays[name] for name in arrays if name.startswith("best/")}
    return without_seconds(path), arrays, (path / "best.safetensors").read_bytes()


def snapshots_of(run):
    """The bytes of a run's snapshots by epoch."""
    return {epoch: path.read_bytes() for epoch, path in run.snapshots.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The numbers of the small run, trained without interruption."""
    return numbers_of(fit.train(config(tmp_path_factory.mktemp("whole"))))


class Act(keras.callbacks.Callback):
    """Calls `act()` at the end of a training step, before the run's own callbacks."""

    def __init__(self, epoch, step, act):
        super().__init__()
        self.at, self.act, self.epoch = (epoch, step), act, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            self.act()


def acting(monkeypatch, *where_and_what):
    """Adds an Act to each fit."""
    fit, act = keras.Model.fit, Act(*where_and_what)
    monkeypatch.setattr(keras.Model, "fit", lambda *a, callbacks, **k: fit(*a, callbacks=[act, *callbacks], **k))


def die():
    raise SystemError("as if killed: nothing more is written")  # but for status.json, which says so


def ask(number):
    """Sends this process a signal; all but Ctrl-C twice, as a closed terminal does."""
    for _ in range(1 if number == signal.SIGINT else 2):
        os.kill(os.getpid(), number)


def interrupted(folder, monkeypatch, epoch, step, act, source=None, **settings):
    """The Run that is left when `act` happens in a training, of `source` if a Run is to go on."""
    one = config(folder, **settings)
    usual = [signal.signal(number, signal.SIG_DFL) for number in STOPPING]  # whatever this test's parent ignores
    try:
        with monkeypatch.context() as patch, pytest.raises((SystemError, KeyboardInterrupt)):
            acting(patch, epoch, step, act)
            fit.resume(source, source.config) if source else fit.train(one)
    finally:
        for number, handler in zip(STOPPING, usual, strict=True):
            signal.signal(number, handler)
    return experiment.load(one.path)


def state_of(run):
    """The epochs and the steps of the next one after which a Run's newest state was written."""
    return tuple(map(int, re.findall(r"\d+", checkpoint.newest(run.path / "last")[0].stem)))


@pytest.fixture(scope="module")
def died(tmp_path_factory):
    """The folder of a run that died in its third epoch, which no test changes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return interrupted(tmp_path_factory.mktemp("died"), monkeypatch, 2, 1, die).path


@pytest.fixture
def run(died, tmp_path):
    """A copy of the run that died, where its training would put it with --runs_dir tmp_path."""
    return experiment.load(shutil.copytree(died, tmp_path / died.name))


def gone_on(run):
    """The numbers of a Run when it has gone on to its end."""
    fit.resume(run, run.config)
    assert experiment.load(run.path).state == "finished"
    return numbers_of(run.path)


@slow_on_jax
@pytest.mark.keras
def test_a_run_that_was_asked_to_stop_repeats_nothing(tmp_path, monkeypatch, whole):
    run = interrupted(tmp_path, monkeypatch, 0, 0, lambda: ask(signal.SIGINT))
    assert run.state == "stopped" and state_of(run) == (0, 1)
    assert gone_on(run) == whole


@pytest.mark.slow
@pytest.mark.keras
def test_a_run_may_be_interrupted_again_and_again(tmp_path, monkeypatch, whole):
    """One that died repeats its epoch at most. One that was asked to stop goes on between two steps, in the middle of
    an epoch; after its last step, behind that epoch.
    """
    run = interrupted(tmp_path, monkeypatch, 0, 1, die)
    assert run.state == "failed" and run.status["epochs_done"] == 0
    for epoch, step, act, state, left in (
        (1, 0, die, "failed", (1, 0)),
        (1, 2, lambda: ask(signal.SIGTERM), "stopped", (1, 3)),
        (1, 0, lambda: ask(signal.SIGTERM), "stopped", (2, 0)),  # Keras counts from where it goes on
        (2, 3, die, "failed", (2, 0)),
        (2, 3, lambda: ask(signal.SIGTERM), "stopped", (3, 0)),
        (3, 1, lambda: ask(signal.SIGHUP), "stopped", (3, 2)),
    ):
        run = interrupted(tmp_path, monkeypatch, epoch, step, act, source=run)
        assert run.state == state and run.status["epochs_done"] == left[0] and state_of(run) == left
    assert gone_on(run) == whole


@pytest.mark.slow
@slow_on_jax
@pytest.mark.keras
def test_a_long_epoch_is_not_lost(tmp_path, monkeypatch, whole):
    """With --save_minutes next to nothing there is a state after each step, and resuming twice changes nothing."""
    run = interrupted(tmp_path, monkeypatch, 1, 2, die, save_minutes=1e-9)
    assert [path.stem[-9:] for path in checkpoint.newest(run.path / "last")] == ["000000002", "000000001"]
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        acting(patch, 2, 1, die)
        fit.resume(run, run.config)
    assert gone_on(experiment.load(run.path)) == whole


@pytest.mark.slow
@slow_on_jax
@pytest.mark.keras
@pytest.mark.parametrize(
    "settings", [{"prior": "exemplar", "num_exemplars": 70}, {"prior": "lars", "ema": 0.9}], ids=str
)
def test_what_a_prior_knows_of_its_weights_is_part_of_the_state(tmp_path, monkeypatch, settings):
    """The means and the neighbours of an epoch that was left, or its normaliser, are those with which it began."""
    settings = PLAIN | settings | {"epochs": 2}
    whole = numbers_of(fit.train(config(tmp_path / "whole", **settings)))
    run = interrupted(tmp_path, monkeypatch, 1, 1, lambda: ask(signal.SIGINT), **settings)
    assert state_of(run) == (1, 2)
    assert gone_on(run) == whole


@pytest.mark.slow
@slow_on_jax
@pytest.mark.keras
def test_training_longer_gives_the_numbers_of_one_longer_run(tmp_path, whole, capfd):
    short = fit.train(config(tmp_path, epochs=2))
    before = {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}
    moved = short.rename(tmp_path / "moved")
    assert called("--resume", moved, "--epochs", 4) == 0
    longer = tmp_path / config(tmp_path).training_id
    assert capfd.readouterr().out.splitlines()[-1] == str(longer)
    assert numbers_of(longer) == whole
    assert {short / path.relative_to(moved): path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before
    assert called("--resume", moved, "--epochs", 4) == 0 and "is finished already" in capfd.readouterr().out
    assert called("--resume", longer, "--epochs", 3) == 2
    assert "has been trained for 4 epochs already; --epochs must be more" in capfd.readouterr().err


@pytest.mark.slow
def test_training_longer_resumes_after_a_kill_in_its_first_epoch(tmp_path, monkeypatch, whole):
    """Before its first step, and even before the folder of the new id has a status of its own."""
    short = fit.train(config(tmp_path, epochs=2))
    longer = config(tmp_path)
    for dying in (keras.Model, "fit"), (RunWriter, "write_results"):
        with monkeypatch.context() as patch, pytest.raises(SystemError):
            patch.setattr(*dying, lambda *_, **__: die())
            fit.train(longer, source=experiment.load(short))
        assert gone_on(experiment.load(longer.path)) == whole
        shutil.rmtree(longer.path)


@pytest.mark.slow
def test_a_run_resumes_after_a_full_disk_in_its_first_epoch(tmp_path, monkeypatch, whole):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match="can no longer be written: No space left"):
        patch.setattr(checkpoint, "save", full)
        fit.train(config(tmp_path))
    run = experiment.load(config(tmp_path).path)
    assert (run.state, run.status["epochs_done"]) == ("failed", 0)  # one was done, but is not on disk
    assert gone_on(run) == whole


def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(run, tmp_path, whole, capfd):
    newest, _ = checkpoint.newest(run.path / "last")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert gone_on(run) == whole
    assert [path.name for path in run.path.glob("last/*.damaged")] == [newest.with_suffix(".damaged").name]
    assert len(checkpoint.newest(run.path / "last")) == 2
    (line,) = complaints(capfd.readouterr().err)
    assert re.fullmatch(rf"warning: {newest} is damaged \(.+\); trying the one before", line)


@pytest.mark.slow
def test_damage_is_found_wherever_it_is(run):
    """Single bits that flip, a file that ends early, none, or another one."""
    path, model = checkpoint.newest(run.path / "last")[0], fit.prepare(run.config).model
    whole, rng = path.read_bytes(), random.Random(1)
    header = 8 + int.from_bytes(whole[:8], "little")
    assert checkpoint.read(path, model, run.config.columns).epoch == 2 and header < len(whole) / 2
    contents = [whole[:-1], whole[: len(whole) // 2], whole[:header], b"", b"hello"]
    for bit in [*rng.sample(range(8 * header), 60), *rng.sample(range(8 * header, 8 * len(whole)), 20)]:
        contents.append(bytearray(whole))
        contents[-1][bit // 8] ^= 1 << bit % 8
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.read(path, model, run.config.columns)


def test_when_all_states_are_damaged_nothing_is_touched(run, tmp_path, capfd):
    for path in checkpoint.newest(run.path / "last"):
        path.write_bytes(b"x")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert called("--resume", run.path) == 2
    expected = r"last holds no undamaged state \(it is no whole safetensors file: .*too small\); its command with "
    assert re.search(expected + "--overwrite starts it again", capfd.readouterr().err)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_patience_is_remembered(tmp_path, monkeypatch):
    """The learning rate is next to nothing: epoch 1 stays the best, and epoch 4 is the third without a better one."""
    settings = {"lr": 1e-30, "beta_warmup": 0, "patience": 3, "epochs": 9}
    run = interrupted(tmp_path, monkeypatch, 2, 1, die, **settings)
    gone_on(run)
    assert experiment.load(run.path).status["epochs_done"] == 4
    assert called("--resume", run.path, "--epochs", 12) == 0  # its patience is over all the same
    assert experiment.load(config(tmp_path, **settings | {"epochs": 12}).path).status["epochs_done"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"lr_schedule": "cosine", "lr_warmup": 1, "epochs": 4}, {"lr_schedule": "plateau", "lr": 1e-30, "epochs": 14}],
)
def test_the_learning_rate_is_remembered(tmp_path, monkeypatch, settings):
    """The plateau halves it after epoch 12, where nothing has become better for 10: it is one of the variables."""
    settings = PLAIN | settings | {"beta_warmup": 0}
    expected = numbers_of(fit.train(config(tmp_path / "whole", **settings)))
    run = interrupted(tmp_path, monkeypatch, settings["epochs"] - 2, 1, die, **settings)
    assert gone_on(run) == expected
    if settings["lr_schedule"] == "plateau":
        model = fit.prepare(run.config).model
        checkpoint.read(checkpoint.newest(run.path / "last")[0], model, run.config.columns).into(model)
        assert float(model.optimizer.learning_rate) == pytest.approx(0.5e-30)


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.parametrize("count", first_on_both(3, 50))
def test_several_steps_in_an_execution_are_the_same_steps(tmp_path, monkeypatch, whole, count):
    """An epoch has four: asked to stop after the first three, and after one execution of all of them."""
    settings, step = {"steps_per_execution": count}, {3: 3, 50: 0}[count]
    run = interrupted(tmp_path, monkeypatch, 1, count - 1, lambda: ask(signal.SIGINT), **settings)
    assert state_of(run) == (1 + (step == 0), step)
    assert gone_on(run) == whole
    assert experiment.load(config(tmp_path).path).path == run.path  # the id is the same


@pytest.mark.slow
@pytest.mark.keras
def test_accumulated_gradients_are_remembered(tmp_path, monkeypatch):
    """Updates are every third step, and an epoch has four: the learning rate falls over all steps nevertheless."""
    settings = PLAIN | {"accumulate": 3, "lr_schedule": "cosine", "epochs": 3, "save_minutes": 1e-9}
    path = fit.train(config(tmp_path / "whole", **settings))
    run = interrupted(tmp_path, monkeypatch, 1, 1, die, **settings)
    assert state_of(run) == (1, 1)
    assert gone_on(run) == numbers_of(path)
    optimizer = (model := fit.prepare(run.config).model).optimizer
    checkpoint.read(checkpoint.newest(run.path / "last")[0], model, run.config.columns).into(model)
    assert int(optimizer.iterations) == 4  # updates by 12 steps
    assert float(optimizer.learning_rate) == pytest.approx(optimizers.FINAL * SMALL_RUN["lr"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "amcvae", "num_samples": 2, "num_steps": 1},
        {"objective": "lmcvae", "drift": "network", "step_rule": "variance", "skip_below": 0.1, "num_steps": 1},
    ],
)
def test_an_objective_resumes_with_its_step_sizes(tmp_path, monkeypatch, settings):
    settings = PLAIN | settings | {"epochs": 3}
    expected = numbers_of(fit.train(config(tmp_path / "whole", **settings)))
    run = interrupted(tmp_path, monkeypatch, 1, 2, die, **settings)
    assert gone_on(run) == expected
    steps = np.asarray(experiment.load(run.path).model.objective.steps())
    assert np.all(np.abs(np.log(steps / 0.01)) > 1e-3)  # they have adapted, and are kept


SCALED = {"lr": 3e-3, "precision": "mixed_float16", "optimizer": "adamw", "clip_norm": 100.0, "epochs": 6}


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.parametrize("settings", first_on_both(SCALED, {"epochs": 3}))
def test_an_average_of_the_weights_is_remembered_validated_and_kept(tmp_path, monkeypatch, settings):
    """best.safetensors is the average, whose validation ELBO is in the history; last/ has the weights themselves."""
    settings, last = settings | {"ema": 0.7}, settings["epochs"]
    path = fit.train(config(tmp_path / "whole", **settings))
    expected = numbers_of(path)
    assert gone_on(interrupted(tmp_path, monkeypatch, 1, 2, die, **settings)) == expected
    run, trained = experiment.load(path), fit.prepare(config(tmp_path, **settings)).model
    checkpoint.read(checkpoint.newest(path / "last")[0], trained, run.config.columns).into(trained)
    assert run.status["best_epoch"] == last  # so that the average is still there
    if "precision" in settings:  # some of the first steps overflowed, and were left out
        skipped = np.log2(trained.optimizer.initial_scale / float(trained.optimizer.dynamic_scale))
        assert skipped > 0 and int(trained.optimizer.iterations) == 4 * last - skipped
    kept = [np.asarray(variable) for variable in run.model.trainable_variables]
    averages = internals.averages(trained.optimizer)
    for one, weight, average in zip(kept, trained.trainable_variables, averages, strict=True):
        expected = weight.constraint(average) if weight.constraint else average
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
    assert any(np.abs(one - raw).max() > 1e-4 for one, raw in zip(kept, trained.trainable_variables, strict=True))
    assert validated(run)["elbo"] == pytest.approx(run.history["val_elbo"][-1], rel=1e-5)


def test_an_average_of_projected_weights_is_projected(tmp_path):
    """It may lie outside by rounding, or far: its optimizer averages before it projects."""
    settings = {"ema": 0.5, "epochs": 2, "lr": 1.0, "prior": "vamp", "model": "vae"}
    prepared = fit.prepare(config(tmp_path, **settings))
    u = prepared.model.top_prior.pseudo_inputs
    assert u.constraint is not None
    index = [one is u for one in prepared.model.trainable_variables].index(True)
    average = internals.averages(prepared.model.optimizer)[index]
    u.assign(np.full(u.shape, 0.25))
    average.assign(np.full(u.shape, 1.5))
    averaged = callbacks.EMAWeights()
    averaged.set_model(prepared.model)
    with averaged.instead():
        assert np.all(np.asarray(u) == 1.0)
    assert np.all(np.asarray(u) == 0.25) and np.all(np.asarray(average) == 1.5)


@pytest.mark.parametrize("judge", [Patience, Plateau])
def test_epochs_of_the_warm_up_may_be_the_best_but_are_not_counted(judge):
    """With a patience of 2 and a warm-up of 3, the best value in epoch 1 is noted and epochs 4 and 5 are counted."""
    options = {"patience": 2} | ({"factor": 0.5, "min_lr": 0.0} if judge is Plateau else {})
    called = judge(Config(beta_warmup=3), [], **options)
    optimizer = SimpleNamespace(learning_rate=np.array(1.0))
    called.set_model(SimpleNamespace(stop_training=False, optimizer=optimizer))
    called.on_train_begin()
    acted = []
    for epoch, value in enumerate([-1.0, -3.0, -3.0, -2.0, -2.0]):
        called.on_epoch_end(epoch, {"val_elbo": value})
        acted.append(called.model.stop_training or optimizer.learning_rate < 1)
    assert acted == [False, False, False, False, True] and called.best == -1.0


@pytest.mark.slow
def test_a_learning_rate_that_falls_over_the_epochs_allows_another_patience_but_no_more_epochs(tmp_path, capfd):
    path = fit.train(config(tmp_path, lr_schedule="cosine", epochs=1))
    assert called("--resume", path, "--epochs", 2) == 2
    assert "a learning rate that falls over its 1 epochs: it cannot be trained longer" in capfd.readouterr().err
    assert called("--resume", path, "--patience", 2) == 0
    assert experiment.load(capfd.readouterr().out.strip()).status["epochs_done"] == 1


def test_the_folder_of_a_run_may_be_named_by_a_dot(run, whole, monkeypatch, capfd):
    monkeypatch.chdir(run.path)
    assert called("--resume", ".") == 0
    assert numbers_of(run.path) == whole


@pytest.mark.slow
def test_a_state_that_cannot_be_read_just_now_is_not_thrown_away(run, monkeypatch, whole, capfd):
    def busy(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    states = checkpoint.newest(run.path / "last")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.atomic, "opened", busy)
        with pytest.raises(UserError, match="cannot be read: Too many open files; mend that, and try again"):
            fit._newest_state(run, run.config, fit.prepare(run.config), mend=True)
    assert checkpoint.newest(run.path / "last") == states
    assert gone_on(run) == whole


def test_a_state_that_another_process_replaced_meanwhile_is_not_damage(run, monkeypatch, capfd):
    """The run goes on elsewhere: it removes its older state after we have listed it."""
    newest, vanished = checkpoint.newest, run.path / "last" / "epoch999999999_step000000000.safetensors"
    monkeypatch.setattr(checkpoint, "newest", lambda folder: [vanished, *newest(folder)])
    prepared = fit.prepare(run.config)
    monkeypatch.setattr(os.path, "lexists", lambda path: monkeypatch.setattr(checkpoint, "newest", newest))
    assert fit._newest_state(run, run.config, prepared, mend=True) is not None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["last", "replaced", "evaluations", "tensorboard"])
def test_a_link_in_the_place_of_a_folder_is_not_followed(run, tmp_path, capfd, name):
    (tmp_path / "victim").mkdir()
    shutil.rmtree(run.path / name, ignore_errors=True)
    (run.path / name).symlink_to(tmp_path / "victim")
    assert called("--resume", run.path) == 2
    assert f"a link in the place of its folder {name}, which is not followed" in capfd.readouterr().err
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.parametrize("name", ["config.json", "status.json", "history.csv", "best.safetensors", "last/state"])
def test_a_pipe_or_an_endless_file_in_a_run_is_an_error_in_one_sentence(run, capfd, name):
    path = checkpoint.newest(run.path / "last")[0] if name == "last/state" else run.path / name
    for put in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")):
        path.unlink()
        put()
        if name in ("history.csv", "best.safetensors"):
            with pytest.raises(UserError, match="no regular file"):
                one = experiment.load(run.path)
                assert one.history if name == "history.csv" else one.model
        elif name == "last/state":
            prepared = fit.prepare(run.config)
            assert fit._newest_state(run, run.config, prepared).epoch < run.config.epochs
            assert "is damaged" in capfd.readouterr().err
        elif name == "status.json":
            assert experiment.load(run.path).status == {}
        else:
            with pytest.raises(UserError, match="no readable config"):
                experiment.load(run.path)


def test_a_run_that_is_being_replaced_is_not_put_back_by_a_second_process(tmp_path, monkeypatch):
    """While --overwrite moves an unfinished run away, the finished one that it was to replace lies aside."""
    path, rename = tmp_path / "run", Path.rename
    for folder, state in ((path, "failed"), (path / "replaced", "finished")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "status.json").write_text(json.dumps({"state": state}))
        (folder / "best.safetensors").write_text(state)

    def renamed(self, target):
        result = rename(self, target)
        if Path(target).name == ".replaced.run":
            finish_replacing(path)  # the other process, at this moment
        return result

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr("experiment.folder.LOCK_WAIT", 0.1)
    _set_aside(path)
    finish_replacing(path)  # as after a kill: nobody holds it
    assert (path / "best.safetensors").read_text() == "finished"


@pytest.mark.slow
def test_a_request_to_stop_at_the_very_end_of_a_run_is_not_lost(tmp_path, monkeypatch):
    write = RunWriter.write_status

    def asked(self, state, **more):
        if state == "finished":
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, state, **more)

    monkeypatch.setattr(RunWriter, "write_status", asked)
    settings = SMALL_RUN | {"epochs": 1, "runs_dir": tmp_path}
    assert called(*as_flags(settings)) == STOPPED
    assert [experiment.load(path.parent).state for path in tmp_path.glob("*/config.json")] == ["finished"]


def test_the_same_command_resumes_the_run(run, tmp_path, whole, capfd):
    assert called(*as_flags(SMALL_RUN | {"runs_dir": tmp_path})) == 0
    printed = capfd.readouterr()
    assert f"resuming {run.path}, failed after 2 epochs\n" in printed.out and not complaints(printed.err)
    assert printed.out.splitlines()[-2].startswith("expected time: ") or printed.out.count("\n") == 2
    assert numbers_of(run.path) == whole


@pytest.mark.slow
def test_a_grid_resumes_its_unfinished_runs(died, tmp_path, whole, capfd):
    shutil.copytree(died, config(tmp_path, gs_key="key").path)
    assert called(*as_flags(SMALL_RUN | {"runs_dir": tmp_path}), "--gs_key", "key", "--jobs", 1) == 0
    assert "failed after 2 epochs\n" in capfd.readouterr().out
    assert numbers_of(config(tmp_path, gs_key="key").path) == whole


def edit(run, name, **changes):
    record = json.loads((run.path / name).read_text())
    (run.path / name).write_text(json.dumps(record | changes))


def test_a_run_that_cannot_be_resumed_is_refused_with_a_reason(run, capfd):

    def refused(expected, *words):
        assert called("--resume", run.path, *words) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: ") and expected in error and error.count("\n") == 1

    refused("--lr 0.1 cannot be given with --resume; only --epochs, --patience", "--lr", 0.1)
    refused("--overwrite cannot be given with --resume", "--overwrite")
    refused("--jobs 2 cannot be given with --resume", "--jobs", 2)
    refused("--epochs 5 6 is more than the one value that --resume takes", "--epochs", 5, 6)
    refused("--epochs 5..6 is more than the one value that --resume takes", "--epochs", "5..6")
    refused("has been trained for 2 epochs already", "--epochs", 1)
    other = next(name for name in ("tensorflow", "jax") if name != run.backend)
    edit(run, "config.json", data_sha256={"sklearn.digits": "0" * 64})
    refused("was trained on another sklearn.digits, of sha256 0000")
    edit(run, "config.json", backend=other)
    refused(f"Keras already runs on {run.backend} in this process, not {other}")
    with pytest.raises(UserError, match=f"was trained on {other}; resume it with --backend {other}"):
        fit.resume(experiment.load(run.path), run.config)
    assert called("--resume", run.path / "nothing") == 2
    assert "nothing is no run" in capfd.readouterr().err
    assert called("--resume", "") == 2 and "is no run" in capfd.readouterr().err


def test_a_run_without_a_state_is_not_taken_for_a_new_one(run, tmp_path, capfd):
    for path in checkpoint.newest(run.path / "last"):
        path.unlink()
    assert called("--resume", run.path) == 2
    assert (
        "has epochs, but no state to resume from; its command with --overwrite starts it again"
        in capfd.readouterr().err
    )


def test_other_versions_are_a_warning(run, tmp_path, capfd):
    edit(run, "config.json", versions=run.record["versions"] | {"keras": "3.0.0"})
    assert called("--resume", run.path) == 0
    assert re.search(r"warning: .*keras 3\.0\.0 is now 3\.[\d.]+; last digits may differ", capfd.readouterr().err)


def test_a_second_process_on_the_same_run_is_refused(run, capfd):
    code = f"import experiment, time\nwith experiment.held({str(run.path)!r}): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        edit(run, "status.json", state="running", process={"pid": process.pid, "host": "here"})
        assert called("--resume", run.path) == 2
        expected = f"error: {run.path} is being trained by process {process.pid} on here; wait for it, or choose other"
        assert capfd.readouterr().err.startswith(expected)
        process.kill()
    assert called("--resume", run.path) == 0


# ---------------------------------------------------------------------------------------------- killed for real

KILLED_RUN = SMALL_RUN | {
    "model": "hvae",
    "epochs": 12,
    "batch_size": 200,
    "max_train_images": 1000,
    "beta_warmup": 9,
    "patience": 11,
}
KILLED_RUN |= {"track": "none", "steps_per_execution": "auto"}
DYING = """import os, random, signal, sys, train
random.seed({seed})
moment, count = random.randint(1, 60), 0
def deadly(call):
    def counted(*words, **more):
        global count
        count += 1
        if count == moment and random.random() < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*words, **more)
        if count >= moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted
for name in ("fsync", "replace", "unlink", "mkdir", "rename"):
    setattr(os, name, deadly(getattr(os, name)))
sys.exit(train.main(sys.argv[1:]))"""


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    """Half of them at any moment of training, half of them before or after a random call that changes the disk."""
    rng, kills = random.Random(5), 0
    words = as_flags(KILLED_RUN | {"runs_dir": tmp_path / "runs", "save_minutes": 1e-4})
    path = configs_of(parsed(words))[0].path
    plain = [sys.executable, "train.py", *words]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    while kills < 4:
        if kills % 2:
            dying = [sys.executable, "-c", DYING.format(seed=kills), *words]
            assert subprocess.run(dying, check=False, **quiet).returncode == -signal.SIGKILL
        else:
            with subprocess.Popen(plain, **quiet) as process:
                began = time.time()
                while not any(p.stat().st_mtime > began for p in path.glob("last/*")) and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.3))
                process.kill()
            assert process.returncode == -signal.SIGKILL
        kills += 1
        done = (path / "history.csv").read_text() if (path / "history.csv").exists() else ""
        if (path / "status.json").exists():
            assert experiment.load(path).state == "interrupted"
    assert subprocess.run(plain, check=False, **quiet).returncode == 0
    assert (path / "history.csv").read_text().startswith(done)  # nothing that was done has been done again
    again = as_flags(KILLED_RUN | {"runs_dir": tmp_path / "again"})
    assert subprocess.run([sys.executable, "train.py", *again], check=False, **quiet).returncode == 0
    assert numbers_of(path) == numbers_of(tmp_path / "again" / path.name)
    assert [float(line.split(",")[0]) for line in without_seconds(path)[1:]] == list(np.arange(1, 13))
    assert not list(path.rglob("*.part"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The small run with the weights of its epochs 1, 2 and 4 beside the best ones."""
    return experiment.load(fit.train(config(tmp_path_factory.mktemp("kept"), snapshot_epochs=(4, 2, 1))))


@pytest.mark.slow
def test_snapshots_are_the_weights_of_their_epochs_and_change_nothing(kept, whole):
    assert numbers_of(kept.path) == whole and list(kept.snapshots) == [1, 2, 4]
    assert kept.status["best_epoch"] == 4 and len(set(snapshots_of(kept).values())) == 3
    assert snapshots_of(kept)[4] == kept.weights.read_bytes()
    for epoch in (1, 4):
        validation = validated(kept.at(epoch))["elbo"]
        assert validation == pytest.approx(kept.history["val_elbo"][epoch - 1], rel=1e-5)
    assert kept.at(1).snapshots == kept.snapshots and kept.weights.name == "best.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["in the epoch", "before its state"])
def test_a_killed_run_has_the_snapshots_of_a_whole_one(kept, tmp_path, monkeypatch, when):
    if when == "in the epoch":
        run = interrupted(tmp_path, monkeypatch, 1, 2, die, snapshot_epochs=(4, 2, 1))
    else:
        with monkeypatch.context() as patch, pytest.raises(SystemError):
            save = checkpoint.save
            patch.setattr(checkpoint, "save", lambda folder, state: die() if state.epoch == 2 else save(folder, state))
            fit.train(config(tmp_path, snapshot_epochs=(4, 2, 1)))
        run = experiment.load(config(tmp_path).path)
    assert set(run.snapshots) == ({1} if when == "in the epoch" else {1, 2})
    fit.resume(run, run.config)
    assert snapshots_of(run) == snapshots_of(kept) and numbers_of(run.path) == numbers_of(kept.path)


def test_a_run_that_is_trained_further_takes_its_snapshots_along(kept, tmp_path):
    longer = fit.train(config(tmp_path, epochs=5, snapshot_epochs=(1, 5)), source=kept)
    found = snapshots_of(experiment.load(longer))
    assert list(found) == [1, 2, 4, 5] and {epoch: found[epoch] for epoch in (1, 2, 4)} == snapshots_of(kept)


def test_snapshots_lie_within_the_epochs():
    with pytest.raises(UserError, match="--snapshot_epochs 1,30 go beyond --epochs 20"):
        Config(epochs=20, snapshot_epochs=(1, 30))
