"""Trackers are told of each epoch once, whatever happens, and change nothing that is trained."""

import dataclasses
import importlib.util
import io
import json
import shutil
import struct
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, TRACKING
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.compat.proto import event_pb2
from test_resume import config, die, interrupted, numbers_of

import evaluate
import experiment
import train
from evaluation import estimators, score
from experiment import Config, tracking
from runtime.errors import UserError
from training import fit
from training.tracked import Painter, Tracked, sheet
from training.writer import RunWriter

SCORED = estimators.Scoring.of(SimpleNamespace(config=Config(), latent_dim=3), num_samples=5)


@pytest.fixture
def on(monkeypatch):
    """TensorBoard as it is outside of these tests."""
    monkeypatch.setitem(tracking.SINKS, "tensorboard", TRACKING["tensorboard"])


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """The folder of the small run that nobody followed."""
    return fit.train(config(tmp_path_factory.mktemp("untracked"), track="none"))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The folder of the small run with its event files, which no test changes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(tracking.SINKS, "tensorboard", TRACKING["tensorboard"])
        return fit.train(config(tmp_path_factory.mktemp("tracked")))


def accumulated(path):
    """What TensorBoard makes of a run's event files."""
    everything = event_accumulator.STORE_EVERYTHING_SIZE_GUIDANCE
    return event_accumulator.EventAccumulator(str(path / "tensorboard"), everything).Reload()


def curves(found):
    """Scalars by tag, each a dict of step to value."""
    return {tag: {one.step: one.value for one in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def written(path):
    """How often each (tag, step) is in the event files, as they are on disk."""
    count = Counter()
    for file in (path / "tensorboard").iterdir():
        content, start = file.read_bytes(), 0
        while start < len(content):
            end = start + 12 + struct.unpack_from("<Q", content, start)[0]
            if end + 4 > len(content):
                break
            event = event_pb2.Event.FromString(content[start + 12 : end])
            count.update((value.tag, event.step) for value in event.summary.value)
            start = end + 4
    return count


def is_history(found, run):
    """Whether the curves are the columns of a run's history, a point an epoch."""
    history = dict(run.history)
    epochs = history.pop("epoch")
    return all(
        list(found[name.replace("_", "/", 1)]) == list(epochs)
        and np.allclose(list(found[name.replace("_", "/", 1)].values()), values)
        for name, values in history.items()
    )


# ---------------------------------------------------------------------------------------------- TensorBoard


@pytest.mark.keras
def test_a_run_that_is_followed_is_the_same_to_the_last_bit(tracked, untracked):
    assert numbers_of(tracked) == numbers_of(untracked)
    assert not (untracked / "tensorboard").exists()


def test_tensorboard_has_the_history_pictures_settings_and_the_best_epoch(tracked):
    run, found = experiment.load(tracked), accumulated(tracked)
    points = curves(found)
    assert is_history(points, run)
    assert list(points["learning_rate"].values()) == [pytest.approx(3e-3)] * 4
    assert points["best/epoch"] == {4: run.status["best_epoch"]}
    assert points["best/val_elbo"] == {4: pytest.approx(run.status["best_val_elbo"])}
    for tag, shape in (("samples", (5 * 8 + 4 * 2, 98)), ("reconstructions", (4 * 8 + 3 * 2, 98))):
        assert [one.step for one in found.Images(tag)] == [1, 2, 3, 4]
        pictures = [np.asarray(Image.open(io.BytesIO(one.encoded_image_string))) for one in found.Images(tag)]
        assert {picture.shape for picture in pictures} == {shape} and np.ptp(pictures[0]) > 0
    settings = found.Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert json.loads(settings.removeprefix("```\n").removesuffix("\n```")) == dataclasses.asdict(run.config)


def test_tensorboard_s_table_of_hyperparameters_has_what_changes_the_numbers(tracked):
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    content = accumulated(tracked).SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    found = parse_session_start_info_plugin_data(content).hparams
    assert found["model"].string_value == "hvae" and found["lr"].number_value == 3e-3
    assert "runs_dir" not in found and "track" not in found


@pytest.mark.keras
def test_each_step_is_there_once_after_a_kill_even_inside_a_record(on, tmp_path, monkeypatch, untracked):
    run = interrupted(tmp_path, monkeypatch, 2, 1, die)
    (file,) = (run.path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # of the second epoch's pictures, which no history has
    fit.resume(run, run.config)
    assert set(written(run.path).values()) == {1}
    found = accumulated(run.path)
    assert is_history(curves(found), run)
    assert [one.step for one in found.Images("samples")] == [1, 3, 4]
    assert numbers_of(run.path) == numbers_of(untracked)


def test_epochs_that_were_not_told_are_told_when_training_goes_on(on, tmp_path, monkeypatch, capfd):
    run = interrupted(tmp_path, monkeypatch, 1, 1, die, track="none", epochs=2)
    assert train.main(["--resume", str(run.path), "--track", "tensorboard"]) == 0
    assert is_history(curves(accumulated(run.path)), experiment.load(run.path))


def test_a_run_that_is_trained_longer_has_the_curves_from_the_start(on, tracked, tmp_path):
    config_ = dataclasses.replace(experiment.load(tracked).config, epochs=5, runs_dir=str(tmp_path))
    path = fit.train(config_, source=experiment.load(tracked))
    assert is_history(curves(accumulated(path)), experiment.load(path))


def test_steps_that_the_history_has_lost_are_taken_back(tmp_path):
    """Its newest state was damaged, say."""
    for epochs, values in ((0, (1.0, 2.0, 3.0)), (1, (4.0, 5.0))):
        board = tracking.TensorBoard(tmp_path, Config(), epochs)
        for step, value in enumerate(values, epochs + 1):
            board.numbers({"train/elbo": value}, step)
        board.close("failed")
    assert curves(accumulated(tmp_path)) == {"train/elbo": {1: 1.0, 2: 4.0, 3: 5.0}}


def test_tensorboard_needs_no_tensorflow(tmp_path):
    """As on a machine with JAX alone."""
    code = f"""import sys
sys.modules["tensorflow"] = None
import numpy as np, pathlib, experiment, tracking
for steps in (1, 2):
    board = tracking.TensorBoard(pathlib.Path({str(tmp_path)!r}), experiment.Config(), steps - 1)
    board.numbers({{"a": 1.5}}, steps)
    board.pictures({{"p": np.zeros((4, 3, 3), np.uint8)}}, steps)
    board.close("finished")
assert "keras" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    found = accumulated(tmp_path)
    assert curves(found) == {"a": {1: 1.5, 2: 1.5}} and len(found.Images("p")) == 2


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    trackers = tracking.Trackers(TRACKING["tensorboard"], tmp_path, Config(), 0)
    trackers.numbers({"a": 1.0}, 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: TensorBoard left out from here on: ")


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(on, tmp_path, monkeypatch, capfd, untracked):
    monkeypatch.setattr(tracking.TensorBoard, "_write", lambda *_, step=0, **__: step > 1 and full())
    path = fit.train(config(tmp_path))
    assert numbers_of(path) == numbers_of(untracked) and experiment.load(path).state == "finished"
    assert capfd.readouterr().err == "warning: TensorBoard left out from here on: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("what", ["numbers", "pictures", "files", "close"])
def test_a_tracker_that_fails_leaves_the_others(tmp_path, capfd, monkeypatch, what):
    told, every = [], ("numbers", "pictures", "files", "close")
    kept = type("Kept", (), {"title": "this"} | dict.fromkeys(every, lambda *words: told.append(words)))
    kept.__init__ = lambda *_: None
    failing = type("Failing", (kept,), {"title": "it", what: full})
    trackers = tracking.Trackers((failing, kept), tmp_path, Config())
    for words in (("numbers", {}, 1), ("pictures", {}, 1), ("files", []), ("close",)):
        getattr(trackers, words[0])(*words[1:])
    assert sum(type(words[0]) is kept for words in told) == 4
    assert capfd.readouterr().err.count("warning: it left out from here on") == 1


def test_pictures_that_cannot_be_drawn_are_left_out(on, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Painter, "call", lambda *_: 1 / 0)
    path = fit.train(config(tmp_path, epochs=1))
    assert is_history(curves(accumulated(path)), experiment.load(path))
    assert capfd.readouterr().err.count("warning: pictures left out from here on: ") == 1


def test_pictures_are_drawn_at_both_ends_and_some_ten_times_between(tmp_path):
    def drawn(**settings):
        writer = RunWriter(tmp_path, Config(**settings), None)
        one = Tracked(writer, None)
        return [epoch for epoch in range(1, writer.config.epochs + 1) if one._is_drawn(epoch)]

    assert drawn(epochs=1) == [1] and drawn(epochs=12) == list(range(1, 13))
    assert drawn(epochs=250) == [1, *range(25, 251, 25)]
    assert drawn(epochs=3, network="pixel", prior="vamp", model="hvae") == []


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 6)), (2, (8, 6)), (3, (8, 6, 3))])
def test_a_sheet_is_a_picture_that_png_can_hold(channels, shape):
    picture = sheet(np.linspace(-1, 2, 8 * 6 * channels).reshape(1, 1, 8, 6, channels))
    assert picture.shape == shape and picture.dtype == np.uint8 and (picture.min(), picture.max()) == (0, 255)
    assert (np.asarray(Image.open(io.BytesIO(tracking.png(picture)))) == picture).all()


# ---------------------------------------------------------------------------------------------- evaluations


def test_an_evaluation_is_told_once_for_the_weights_that_it_scored(tracked, tmp_path):
    run = experiment.load(shutil.copytree(tracked, tmp_path / tracked.name))
    for _ in range(2):
        scored = score.evaluate(run, SCORED, max_images=9)
    found, name = curves(accumulated(run.path)), f"test_{SCORED.tag}_N9"
    assert found[f"{name}/log_px"] == {run.status["best_epoch"]: pytest.approx(scored.metrics["log_px"])}
    assert [found[f"{name}/rates/{layer}"] for layer in (0, 1)]
    assert set(written(run.path).values()) == {1}


def test_an_evaluation_of_a_run_that_nobody_followed_tells_nobody(untracked, tmp_path):
    run = experiment.load(shutil.copytree(untracked, tmp_path / untracked.name))
    score.evaluate(run, SCORED, max_images=9)
    assert not (run.path / "tensorboard").exists()


def test_numbers_are_flattened_and_what_is_none_is_left_out():
    values = {"a": 1, "b": None, "c": float("nan"), "d": {"e": [2.5, {"f": 3}]}, "g": "text"}
    assert tracking.flat(values) == {"a": 1.0, "d/e/0": 2.5, "d/e/1/f": 3.0}


# ---------------------------------------------------------------------------------------------- optional trackers


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=f"--track {name} needs a package: pip install {name}, or leave --track out"):
        fit.train(config(tmp_path, track=name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"mlflow": 3}', '{"mlflow": "../.."}', '{"mlflow": ""}'])
def test_what_a_tracker_would_not_have_written_is_no_name_of_a_run(tmp_path, content):
    (tmp_path / tracking.IDS).write_text(content)
    assert tracking.recall(tmp_path, "mlflow") is None
    tracking.remember(tmp_path, "wandb", "abc1")
    tracking.remember(tmp_path, "mlflow", "ff")
    assert [tracking.recall(tmp_path, name) for name in ("wandb", "mlflow")] == ["abc1", "ff"]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Neither the user's settings of trackers nor their home."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_DIR", raising=False)


def test_mlflow_follows_a_run_through_a_kill_and_keeps_it_for_every_script(tmp_path, monkeypatch, capfd, offline):
    mlflow = pytest.importorskip("mlflow", reason="pip install -r requirements/track.txt")
    run = interrupted(tmp_path / "runs", monkeypatch, 2, 1, die, track="mlflow", gs_key="group")
    name = tracking.recall(run.path, "mlflow")
    fit.resume(run, run.config)
    assert tracking.recall(run.path, "mlflow") == name and not (ROOT / "mlruns").exists()
    store = f"sqlite:///{tmp_path / 'runs' / 'mlflow' / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    (one,) = client.search_runs([client.get_experiment_by_name("group").experiment_id])
    assert (one.info.run_id, one.info.run_name, one.info.status) == (name, run.path.name, "FINISHED")
    assert one.data.params["prior"] == "vamp" and one.data.params["lr"] == "0.003"
    points = {tag: client.get_metric_history(name, tag) for tag in one.data.metrics}
    assert is_history({tag: {point.step: point.value for point in all_} for tag, all_ in points.items()}, run)
    assert {len(points[tag]) for tag in points if not tag.startswith("best")} == {4}
    assert len([file for file in client.list_artifacts(name, "images") if file.path.endswith(".png")]) == 8

    client.download_artifacts(name, "run", str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(tracking.FILES)
    there = experiment.load(tmp_path / "run")
    assert there.state == "finished" and there.status == experiment.load(run.path).status
    assert evaluate.main([str(tmp_path / "run"), "--max_images", "9", "--num_samples", "5"]) == 0
    assert evaluate.main([str(run.path), "--max_images", "9", "--num_samples", "5"]) == 0
    told = client.get_run(name)
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert told.data.metrics["test_isfitted_S5_N9/log_px"] == stored["log_px"] and told.info.status == "FINISHED"
    assert "left out from here on" not in capfd.readouterr().err


def test_wandb_follows_a_run_offline_through_a_kill(tmp_path, monkeypatch, capfd, offline):
    pytest.importorskip("wandb", reason="pip install -r requirements/track.txt")
    run = interrupted(tmp_path / "runs", monkeypatch, 2, 1, die, track="wandb")
    name = tracking.recall(run.path, "wandb")
    fit.resume(run, run.config)
    score.evaluate(run, SCORED, max_images=9)
    assert tracking.recall(run.path, "wandb") == name
    assert "left out from here on" not in capfd.readouterr().err
    records = [one for file in sorted((tmp_path / "runs").glob("wandb/off*/*.wandb")) for one in stored(file)]
    told = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
            for one in records if one.HasField("history")]  # fmt: skip
    points = {tag: {line["epoch"]: line[tag] for line in told} for tag in told[0] if not tag.startswith("_")}
    assert len(told) == 4 and is_history(points, run)
    assert [line["samples/_type"] for line in told] == ["image-file"] * 4
    (artefact,) = (one.request.log_artifact.artifact if one.request.HasField("log_artifact") else one.artifact
                   for one in records if one.HasField("artifact") or one.request.HasField("log_artifact"))  # fmt: skip
    assert sorted(entry.path for entry in artefact.manifest.contents) == sorted(tracking.FILES)


def stored(path):
    """The records of one of wandb's files: blocks of 32 KiB, in which each part has checksum, length and type."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, start, parts = path.read_bytes(), 7, b""  # behind the file's own header
    while start + 7 < len(content):
        if 2**15 - start % 2**15 < 7:  # no room for another part
            start += 2**15 - start % 2**15
        length, kind = struct.unpack_from("<HB", content, start + 4)
        parts += content[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.parametrize(("netrc", "expected"), [("", False), ("machine api.wandb.ai login user password k\n", True)])
def test_wandb_is_offline_unless_its_key_is_there(tmp_path, monkeypatch, offline, netrc, expected):
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking.logged_in() == expected
