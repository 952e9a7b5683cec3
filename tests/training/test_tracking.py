"""Trackers show each epoch once, whatever happens, and change nothing that is trained."""

import dataclasses
import importlib.util
import io
import json
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, TRACKING, complaints, slow_on_jax
from keras import ops
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator
from test_resume import SMALL_RUN, config, die, interrupted, numbers_of

import experiment
import models
import train
from evaluation import estimators, score
from experiment import Config, tracking
from models.weight_names import named_weights
from plotting import sheets
from runtime.errors import UserError
from training import fit
from training.devices import ONE_DEVICE
from training.tracked import Painter, Tracked, sheet
from training.writer import RunWriter

SCORED = estimators.Scoring.of(SimpleNamespace(config=Config(), precision="float32", latent_dim=3), num_samples=5)


@pytest.fixture
def on(monkeypatch):
    """TensorBoard as it is outside of these tests."""
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", TRACKING["tensorboard"])


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """The folder of the small run that nobody followed."""
    return fit.train(config(tmp_path_factory.mktemp("untracked"), track="none"))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """The folder of the small run with its event files, which no test changes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(tracking.TRACKERS, "tensorboard", TRACKING["tensorboard"])
        return fit.train(config(tmp_path_factory.mktemp("tracked")))


def accumulated(path):
    """What TensorBoard makes of a run's event files."""
    everything = event_accumulator.STORE_EVERYTHING_SIZE_GUIDANCE
    return event_accumulator.EventAccumulator(str(path / "tensorboard"), everything).Reload()


def curves(found):
    """Scalars by tag, each a dict of step to value."""
    return {tag: {one.step: one.value for one in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def points(found):
    """How often TensorBoard shows each (tag, step): a Counter."""
    events = {"scalars": found.Scalars, "images": found.Images, "tensors": found.Tensors}
    return Counter((tag, one.step) for kind, get in events.items() for tag in found.Tags()[kind] for one in get(tag))


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


@pytest.mark.slow
@slow_on_jax
@pytest.mark.keras
def test_tracking_changes_no_bit_of_a_training(tracked, untracked):
    assert numbers_of(tracked) == numbers_of(untracked)
    assert not (untracked / "tensorboard").exists()


def test_tensorboard_has_the_history_pictures_settings_and_the_best_epoch(tracked):
    run, found = experiment.load(tracked), accumulated(tracked)
    points = curves(found)
    assert is_history(points, run)
    assert list(points["learning_rate"].values()) == [pytest.approx(SMALL_RUN["lr"])] * 4
    assert points["best/epoch"] == {4: run.status["best_epoch"]}
    assert points["best/val_elbo"] == {4: pytest.approx(run.status["best_val_elbo"])}
    for tag, shape in (("samples", (5 * 8 + 4 * 2, 98, 3)), ("reconstructions", (4 * 8 + 3 * 2, 98, 3))):
        assert [one.step for one in found.Images(tag)] == [1, 2, 3, 4]
        pictures = [np.asarray(Image.open(io.BytesIO(one.encoded_image_string))) for one in found.Images(tag)]
        assert {picture.shape for picture in pictures} == {shape} and np.ptp(pictures[0]) > 0
    settings = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(settings.removeprefix("```\n").removesuffix("\n```")) == dataclasses.asdict(run.config)


def test_tensorboard_s_table_of_hyperparameters_has_what_changes_the_numbers(tracked):
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    content = accumulated(tracked).SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    found = parse_session_start_info_plugin_data(content).hparams
    assert found["model"].string_value == "vae" and found["lr"].number_value == SMALL_RUN["lr"]
    assert "runs_dir" not in found and "track" not in found


@pytest.mark.slow
def test_each_step_is_there_once_after_a_kill_even_inside_a_record(on, tmp_path, monkeypatch, untracked):
    run = interrupted(tmp_path, monkeypatch, 2, 1, die)
    (file,) = (run.path / "tensorboard").glob("*tfevents*")
    file.write_bytes(file.read_bytes()[:-7])  # of the second epoch's pictures, which are not in the history
    fit.resume(run, run.config)
    found = accumulated(run.path)
    assert set(points(found).values()) == {1}
    assert is_history(curves(found), run)
    assert [one.step for one in found.Images("samples")] == [1, 3, 4]
    assert numbers_of(run.path) == numbers_of(untracked)


@pytest.mark.slow
def test_epochs_that_were_not_told_are_told_when_training_goes_on(on, tmp_path, monkeypatch, capfd):
    run = interrupted(tmp_path, monkeypatch, 1, 1, die, track="none", epochs=2)
    assert train.main(["--resume", str(run.path), "--track", "tensorboard"]) == 0
    assert is_history(curves(accumulated(run.path)), experiment.load(run.path))


def test_a_run_that_is_trained_longer_has_the_curves_from_the_start(on, tracked, tmp_path):
    config_ = dataclasses.replace(experiment.load(tracked).config, epochs=5, runs_dir=str(tmp_path))
    path = fit.train(config_, source=experiment.load(tracked))
    assert is_history(curves(accumulated(path)), experiment.load(path))


def board(path, rows):
    """A TensorBoard for a training whose history has these values of train_elbo."""
    rows = [{"epoch": epoch, "train_elbo": value} for epoch, value in enumerate(rows, 1)]
    return tracking.TensorBoard(path, Config(), rows, "training")


def test_steps_that_the_history_has_lost_are_taken_back(tmp_path):
    """For example because its newest state was damaged."""
    for rows, values in (((), (1.0, 2.0, 3.0)), ((1.0,), (4.0, 5.0))):
        one = board(tmp_path, rows)
        for step, value in enumerate(values, len(rows) + 1):
            one.numbers({"train/elbo": value}, step)
        one.close("failed")
    found = accumulated(tmp_path)
    assert curves(found) == {"train/elbo": {1: 1.0, 2: 4.0, 3: 5.0}} and set(points(found).values()) == {1}


@pytest.mark.parametrize("ema", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_weights_are_shown_every_so_many_epochs_as_they_are_kept(on, tmp_path, ema):
    run = experiment.load(fit.train(config(tmp_path, track_weights=2, ema=ema, epochs=2)))
    found, named = accumulated(run.path), named_weights(run.model)
    assert set(found.Tags()["histograms"]) == {f"weights/{name}" for name in named}
    assert int(run.status["best_epoch"]) == 2  # so that the weights are those of the histograms
    for name, weight in named.items():
        (one,) = found.Histograms(f"weights/{name}")
        values, told = np.asarray(ops.convert_to_numpy(weight), "float64"), one.histogram_value
        assert (one.step, told.num, told.min, told.max) == (2, values.size, values.min(), values.max())
        assert sum(told.bucket) == values.size and told.sum == pytest.approx(values.sum(), rel=1e-9, abs=1e-9)


def test_histograms_of_weights_need_a_tracker():
    with pytest.raises(UserError, match="--track_weights 2 goes with --track tensorboard or wandb"):
        Config(track_weights=2, track="none")


@pytest.mark.parametrize("note", ["0", "1", "2", "3", "9", "", "x"])
def test_a_step_is_there_once_if_a_process_died_between_it_and_its_note(tmp_path, note):
    one = board(tmp_path, ())
    for step in (1, 2, 3):
        one.numbers({"train/elbo": float(step)}, step)
    (tmp_path / "tensorboard" / "epochs").write_text(note)
    board(tmp_path, (1.0, 2.0, 3.0)).close("finished")
    found = accumulated(tmp_path)
    assert curves(found) == {"train/elbo": {1: 1.0, 2: 2.0, 3: 3.0}} and set(points(found).values()) == {1}


def test_an_epoch_that_is_in_the_history_alone_is_added(tmp_path):
    """The process died after it had written the history, and before the event file."""
    board(tmp_path, (1.0,)).close("failed")
    board(tmp_path, (1.0, 2.0)).close("finished")
    assert curves(accumulated(tmp_path)) == {"train/elbo": {1: 1.0, 2: 2.0}}


def test_event_files_need_neither_tensorflow_nor_tensorboard(tmp_path):
    """As on a machine with JAX alone."""
    code = f"""import sys
sys.modules |= dict.fromkeys(("tensorflow", "tensorboard"))
import numpy as np, pathlib, experiment
from experiment import tracking
rows = []
for step in (1, 2):
    board = tracking.TensorBoard(pathlib.Path({str(tmp_path)!r}), experiment.Config(), rows, "training")
    board.numbers({{"a": 1.5}}, step)
    board.pictures({{"p": np.zeros((4, 3, 3), np.uint8)}}, step)
    board.close("finished")
    rows.append({{"epoch": step, "a": 1.5}})
assert "keras" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    found = accumulated(tmp_path)
    assert curves(found) == {"a": {1: 1.5, 2: 1.5}} and len(found.Images("p")) == 2


def test_a_process_whose_event_file_cannot_grow_says_so_and_ends(tmp_path):
    """As on a full disk, where SummaryWriter, tensorboardX's own way, would keep the process from ending."""
    code = f"""import numpy as np, resource, experiment
from experiment import tracking
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
trackers = tracking.Trackers(tracking.TRACKERS["tensorboard"], {str(tmp_path)!r}, experiment.Config(), [])
noise = np.random.default_rng(0).integers(0, 256, (100, 300, 3), np.uint8)
for step in range(1, 5):
    trackers.tell("numbers", {{"a": 1.5}}, step)
    trackers.tell("pictures", {{"p": noise}}, step)
trackers.tell("close", "finished")"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stderr == "warning: TensorBoard left out from here on: [Errno 27] File too large\n"
    assert curves(accumulated(tmp_path)) == {"a": {1: 1.5, 2: 1.5}}


def test_without_tensorboardx_one_line_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    trackers = tracking.Trackers(TRACKING["tensorboard"], tmp_path, Config(), [])
    trackers.tell("numbers", {"a": 1.0}, 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: TensorBoard left out from here on: ")


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_tracker_that_fails_is_left_out_and_the_training_goes_on(on, tmp_path, monkeypatch, capfd, untracked):
    monkeypatch.setattr(tracking.TensorBoard, "_write", lambda _, step, *__, **___: step > 1 and full())
    path = fit.train(config(tmp_path))
    assert numbers_of(path) == numbers_of(untracked) and experiment.load(path).state == "finished"
    expected = "warning: TensorBoard left out from here on: [Errno 28] No space left on device"
    assert complaints(capfd.readouterr().err) == [expected]


@pytest.mark.parametrize("what", ["numbers", "pictures", "files", "close"])
def test_a_tracker_that_fails_leaves_the_others(tmp_path, capfd, monkeypatch, what):
    told, every = [], ("numbers", "pictures", "files", "close")
    kept = type("Kept", (), {"title": "this"} | dict.fromkeys(every, lambda *words: told.append(words)))
    kept.__init__ = lambda *_: None
    failing = type("Failing", (kept,), {"title": "it", what: full})
    trackers = tracking.Trackers((failing, kept), tmp_path, Config())
    for words in (("numbers", {}, 1), ("pictures", {}, 1), ("files", []), ("close", None)):
        trackers.tell(*words)
    assert sum(type(words[0]) is kept for words in told) == 4
    assert capfd.readouterr().err.count("warning: it left out from here on") == 1


@pytest.mark.slow
def test_pictures_that_cannot_be_drawn_are_left_out(on, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Painter, "call", lambda *_: 1 / 0)
    path = fit.train(config(tmp_path, epochs=1))
    assert is_history(curves(accumulated(path)), experiment.load(path))
    assert capfd.readouterr().err.count("warning: pictures left out from here on: ") == 1


def test_pictures_are_drawn_at_both_ends_and_some_ten_times_between(tmp_path):
    def drawn(**settings):
        writer = RunWriter(tmp_path, Config(**settings), None)
        one = Tracked(writer, None)
        return [epoch for epoch in range(1, writer.config.epochs + 1) if one.draws and one._is_due(epoch)]

    assert drawn(epochs=1) == [1] and drawn(epochs=12) == list(range(1, 13))
    assert drawn(epochs=250) == [1, *range(25, 251, 25)]
    assert drawn(epochs=3, network="pixel", prior="vamp", model="hvae") == []


@pytest.mark.slow
@pytest.mark.keras
def test_pictures_are_drawn_of_the_epoch_after_which_patience_stops(on, tmp_path):
    path = fit.train(config(tmp_path, epochs=100, patience=1, lr=1e-12))
    last = len(experiment.load(path).history["epoch"])
    assert 1 < last < 10 and [one.step for one in accumulated(path).Images("samples")] == [1, last]


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 6)), (2, (8, 6)), (3, (8, 6, 3))])
def test_a_sheet_is_a_picture_that_tensorboard_shows(tmp_path, channels, shape):
    picture = sheet(np.linspace(-1, 2, 8 * 6 * channels).reshape(1, 1, 8, 6, channels))
    assert picture.shape == shape and picture.dtype == np.uint8 and (picture.min(), picture.max()) == (0, 255)
    one = board(tmp_path, ())
    one.pictures({"sheet": picture}, 1)
    (shown,) = accumulated(tmp_path).Images("sheet")
    shown = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    assert (shown == (picture if channels == 3 else picture[..., None])).all()


def test_reconstructions_lie_under_their_images():
    model = models.build(Config(network="mlp", prior="standard", latent_dim=3), (8, 8, 1))
    x = (np.random.default_rng(0).random((12, 8, 8, 1)) < 0.5).astype("float32")
    picture = Painter(model, 0).paint(x, ONE_DEVICE)["reconstructions"]
    top, left = (sheets.starts(count, 8)[0] for count in (4, 10))
    for row, column, expected in ((0, 3, x[3]), (1, 3, model.reconstruct(x)[3]), (3, 1, model.reconstruct(x)[11])):
        tile = picture[top[row] : top[row] + 8, left[column] : left[column] + 8]
        np.testing.assert_allclose(tile, 255 * np.asarray(expected)[..., 0], atol=0.6)


# ---------------------------------------------------------------------------------------------- evaluations


def test_an_evaluation_is_told_once_for_the_weights_that_it_scored(tracked, tmp_path):
    run = experiment.load(shutil.copytree(tracked, tmp_path / tracked.name))
    for _ in range(2):
        scored = score.evaluate(run, SCORED, max_images=9)
    found, name = curves(accumulated(run.path)), f"test_{SCORED.tag}_N9"
    assert found[f"{name}/log_px"] == {run.status["best_epoch"]: pytest.approx(scored.metrics["log_px"])}
    assert list(found[f"{name}/rates/0"].values()) == pytest.approx(scored.metrics["rates"])
    assert set(points(accumulated(run.path)).values()) == {1}


def test_an_evaluation_of_a_run_that_nobody_followed_tells_nobody(untracked, tmp_path):
    run = experiment.load(shutil.copytree(untracked, tmp_path / untracked.name))
    score.evaluate(run, SCORED, max_images=9)
    assert not (run.path / "tensorboard").exists()


def test_numbers_are_flattened_and_what_is_none_is_left_out():
    values = {"a": 1, "b": None, "c": float("nan"), "d": {"e": [2.5, {"f": 3}]}, "g": "text"}
    assert tracking.flat(values) == {"a": 1.0, "d/e/0": 2.5, "d/e/1/f": 3.0}


# ---------------------------------------------------------------------------------------------- optional trackers


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match="--track wandb needs a package: pip install wandb, or leave --track out"):
        fit.train(config(tmp_path, track="wandb"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"wandb": 3}', '{"wandb": "../.."}', '{"wandb": ""}', "{}", "[" * 999]
)
def test_a_file_that_no_tracker_has_written_has_no_id(tmp_path, content):
    (tmp_path / tracking.IDS).write_text(content)
    assert tracking.wandb_id(tmp_path) is None


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Neither the user's settings of W&B nor their home."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("before", ["wandb", "tensorboard"])
def test_wandb_has_each_epoch_once_offline_and_after_a_kill(on, tmp_path, monkeypatch, capfd, offline, before):
    """Also those from before it was turned on."""
    wandb = pytest.importorskip("wandb", reason="pip install -r requirements/track.txt")
    run = interrupted(tmp_path / "runs", monkeypatch, 2, 1, die, track=before)
    name = tracking.wandb_id(run.path)
    time.sleep(1)  # W&B tells event files of an earlier process by the second in their names
    fit.resume(run, dataclasses.replace(run.config, track="wandb"))
    scored = score.evaluate(run, SCORED, max_images=9)
    assert tracking.wandb_id(run.path) == name or before != "wandb"
    said = capfd.readouterr().err
    assert "left out" not in said and "wandb:" not in said
    wandb.teardown()  # which waits for W&B's process, and that for the disk
    records = [one for file in sorted((tmp_path / "runs").glob("wandb/off*/*.wandb")) for one in stored(file)]
    runs = {(one.run.project, one.run.run_id) for one in records if one.HasField("run")}
    assert runs == {("vampvae", tracking.wandb_id(run.path))}
    told = [items(one.history.item) for one in records if one.HasField("history")]
    shown = {tag: {line["global_step"]: line[tag] for line in told} for tag in told[0] if not tag.startswith("_")}
    assert len(told) == 4 and is_history(shown, run)
    assert [line["samples/_type"] for line in told[-2:]] == ["images/separated"] * 2
    summaries = [items(one.summary.update) for one in records if one.HasField("summary")]
    last = {key: value for summary in summaries for key, value in summary.items()}
    assert last[f"test_{SCORED.tag}_N9/log_px"] == pytest.approx(scored.metrics["log_px"])
    (artefact,) = (one.request.log_artifact.artifact if one.request.HasField("log_artifact") else one.artifact
                   for one in records if one.HasField("artifact") or one.request.HasField("log_artifact"))  # fmt: skip
    assert sorted(entry.path for entry in artefact.manifest.contents) == sorted(tracking.FILES)


def items(found):
    """Items of one of W&B's records: a dict."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in found}


def stored(path):
    """The records of one of W&B's files: blocks of 32 KiB, in which each part has checksum, length and type."""
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


@pytest.mark.parametrize(("netrc", "mode"), [("", "offline"), ("machine 127.0.0.1:9 login me password {}", "online")])
def test_wandb_is_offline_unless_its_key_is_there(tmp_path, monkeypatch, offline, netrc, mode):
    pytest.importorskip("wandb", reason="pip install -r requirements/track.txt")
    (tmp_path / "netrc").write_text(netrc.format("0" * 40))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code = f"""import pathlib, wandb, experiment
from experiment import tracking
def init(mode, **_):
    raise SystemExit(mode != {mode!r})
wandb.init = init
tracking.Wandb(pathlib.Path({str(tmp_path)!r}), experiment.Config(), [], "training")"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
