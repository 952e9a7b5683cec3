"""What `import vampvae` gives to Python: the same runs, scores and figures as the commands, and their sentences."""

import contextlib
import copy
import re
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import ID, ROOT, called, read

import evaluate
import experiment
import models
import train
import vampvae
from experiment import own
from runtime import backend
from vampvae import DataError, UserError

QUICK = {"network": "mlp", "hidden_units": 8, "epochs": 1, "batch_size": 20, "lr": 1e-3, "track": "none"}
IMAGES = (np.random.default_rng(0).random((60, 8, 8)) < np.linspace(0.1, 0.9, 8)).astype(np.uint8) * 255


@pytest.fixture(scope="module")
def of_array(tmp_path_factory):
    """The Run of an array of images, which no test changes."""
    return vampvae.train(IMAGES, runs_dir=tmp_path_factory.mktemp("python"), **QUICK)


def test_an_array_is_a_data_set_that_commands_know_too(of_array, capfd):
    run = of_array
    assert (run.state, run.image_shape, len(run.history["val_elbo"])) == ("finished", (8, 8, 1), 1)
    assert re.fullmatch(rf"folder:{run.path.parent}/arrays/[0-9a-f]{{16}}\.npy", run.config.data_set)
    assert len(run.images("train")) == 48 and len(run.images("test")) == 6
    assert called(train.main, "--resume", run.path) == 0 and "is finished already" in capfd.readouterr().out
    assert vampvae.evaluate(run.path, seed=3)["num_images"] == 6
    assert called(evaluate.main, run.path, "--seed", 3) == 0
    for same in (IMAGES[..., None] / 255, IMAGES > 0):  # the same bytes, so the same run, which is not trained again
        again = vampvae.train(same, runs_dir=run.path.parent, **QUICK)
        assert again.path == run.path and again.status == run.status


@pytest.mark.keras
def test_a_run_samples_reconstructs_embeds_and_scores(trained):
    run = vampvae.load(trained[1])
    grey = run.dataset.split("test").images[:7] * (255 // 16)
    assert run.sample(3).shape == (3, 8, 8, 1) and np.array_equal(run.sample(3), run.sample(3))
    assert not np.array_equal(run.sample(np.int64(3)), run.sample(3, seed=1))
    assert run.embed(grey).shape == (7, 3) and run.reconstruct(grey[..., 0]).shape == (7, 8, 8, 1)
    assert run.embed(np.full((2, 8, 8), 1 / 255)).shape == (2, 3)  # dark, but no bytes of 0 and 1
    seen = run.images("test", 7)
    np.testing.assert_allclose(run.embed(seen), np.asarray(run.model.embed(seen)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.reconstruct(seen), np.asarray(run.model.reconstruct(seen)), rtol=1e-5, atol=1e-6)


def test_a_run_has_what_is_on_disk_and_inherits_from_nothing(of_array):
    assert vampvae.Run.__bases__ == (object,) and repr(of_array) == f"<Run {of_array.path}, finished>"
    public = {name for name, value in vars(experiment.Run).items() if isinstance(value, property | cached_property)}
    public |= {"path", "config", "status", "backend", "weights", "data_set"}
    hidden = {"binarization", "comparable", "has_val", "is_own", "weights_sha256", "weights_id"}
    assert public - set(dir(of_array)) == hidden
    assert all(getattr(of_array, name) is getattr(of_array.on_disk, name) for name in ("model", "history", "config"))
    assert copy.copy(of_array).path == of_array.path


def test_log_px_of_images_is_what_evaluate_stores(run):
    one, settings = vampvae.load(run), {"num_samples": 20, "proposal": "posterior"}
    scores = vampvae.evaluate(one, max_images=9, **settings)
    assert scores == read(run / "metrics.json") and scores["num_images"] == 9
    log_px = one.log_px(one.images("test", 9), **settings)
    assert log_px.shape == (9,) and log_px.mean() == pytest.approx(scores["log_px"])


def test_grey_images_are_binarized_for_a_run_of_binary_ones_as_with_on():
    run = SimpleNamespace(path="x", image_shape=(28, 28, 1), config=experiment.Config(data_set="staticmnist"))
    binary = np.random.default_rng(0).random((5, 28, 28)) < 0.5
    np.testing.assert_array_equal(vampvae.Run._as_scored(run, binary)[..., 0], binary)
    assert set(np.unique(vampvae.Run._as_scored(run, 0.2 + 0.6 * binary))) == {0, 1}


def test_log_px_is_computed_in_the_precision_that_is_asked_for(of_array, tmp_path):
    half = vampvae.train(IMAGES, runs_dir=tmp_path, precision="mixed_bfloat16", **QUICK)
    settings = {"num_samples": 20, "proposal": "posterior"}
    before = half.log_px(IMAGES, **settings)
    full = half.log_px(IMAGES, precision="float32", **settings)
    assert np.abs(full - before).max() > 1e-4 and np.abs(full - before).max() < 1


def test_none_overrides_a_preset_and_auto_knows_dense_networks(tmp_path, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def borrowed(*words):
        asked.append(words)
        yield

    monkeypatch.setattr(vampvae.backend, "borrowed", borrowed)
    monkeypatch.setattr(vampvae.start, "existing", lambda config, args: asked.append(config) or (None, config))
    monkeypatch.setattr(vampvae.start, "fit", lambda *_: tmp_path)
    monkeypatch.setattr(vampvae, "Run", lambda path: path)
    settings = {"preset": "mcvae_mnist_amcvae3", "runs_dir": tmp_path, "backend": "auto"}
    for more, clip_norm in (({}, 50.0), ({"clip_norm": None, "deterministic": "off"}, None)):
        vampvae.train("mnist", **settings, **more)
        (name, _, dense, deterministic), config = asked[-2:]
        assert config.clip_norm == clip_norm and name == "auto"
        assert dense == models.NETWORKS[config.network].is_dense and deterministic == (not more)
    vampvae.train("mnist", network="mlp")
    assert asked[-2][2]


def test_auto_stays_on_the_backend_that_runs(monkeypatch):
    settled = []
    monkeypatch.setattr(backend, "settle", lambda *words: settled.append(words))
    for name in (None, "auto"):
        with backend.borrowed(name, dense=True):
            assert settled[-1] == (keras.backend.backend(), "auto", True)


def test_classes_of_several_files_are_named_one_by_one(of_array, tmp_path, no_code):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(f"class Mine:\n    name = {name!r}\n")
    files = [tmp_path / "a.py", str(tmp_path / "b.py")]
    for call in (lambda code: vampvae.load(of_array.path, code=code),
                 lambda code: vampvae.plot(of_array, "losshistory", code=code),
                 lambda code: vampvae.evaluate(of_array, code=code, num_samples=3)):  # fmt: skip
        own._files.clear()
        call(files)
        assert len(own._files) == 2
    record = {"prior": {"file": "c.py", "class": "Mine", "sha256": "0" * 64}}
    with pytest.raises(UserError, match=r"of c\.py, of sha256 0+; name it with --code c.py"):
        own.require(of_array.path, record)
    with pytest.raises(UserError, match=r"a\.py with sha256 .*, is another file; put the former one back"):
        own.require(of_array.path, {"prior": record["prior"] | {"file": "a.py"}})


def test_a_figure_is_matplotlib_s(of_array):
    figure = vampvae.plot(of_array, "losshistory")
    assert [axes.get_xlabel() for axes in figure.axes][-1] == "epoch" and not (of_array.path / "figures").exists()


def test_settings_are_flags_and_an_unfinished_run_goes_on(run):
    status = run / "status.json"
    settings = {"model": "hvae", "prior": "vamp", "num_pseudo_inputs": 12, "network_size": 0.25, "lr": 1e-3}
    settings |= {"epochs": 2, "latent_dim": 3, "seed": 0, "patience": None, "track": "none", "runs_dir": run.parent}
    sizes = read(run / "config.json")["config"]
    settings |= {name: sizes[name] for name in ("batch_size", "data_set")}
    name = settings.pop("data_set")
    before = status.read_text()
    assert vampvae.train(name, **settings).path.name == ID and status.read_text() == before  # it is finished
    status.write_text(before.replace("finished", "stopped"))
    assert vampvae.train(name, **settings).state == "finished"


def test_keras_settings_come_back(of_array):
    keras.config.set_epsilon(1e-5)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        before = of_array.embed(IMAGES[:2])
        assert (keras.config.epsilon(), keras.config.dtype_policy().name) == (1e-5, "mixed_bfloat16")
        with pytest.raises(UserError):
            vampvae.plot(of_array, "nothing")
        assert keras.config.epsilon() == 1e-5
    finally:
        keras.config.set_epsilon(1e-7)
        keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(before, of_array.embed(IMAGES[:2]))


BAD_IMAGES = [
    (np.zeros((60, 8)), r"shape \(60, 8\); expected \(N, H, W\) or \(N, H, W, C\), C 1 or 3"),
    (np.zeros((60, 8, 8, 2)), r"shape \(60, 8, 8, 2\); expected"),
    (np.full((60, 8, 8), np.nan), "values that are NaN"),
    (np.full((60, 8, 8), 1.5), "floats from 1.5 to 1.5; they must lie between 0 and 1"),
    (np.zeros((60, 8, 8), int), "holds int64; make it uint8, 0 to 255, or floats from 0 to 1"),
    (np.ones((60, 8, 8), np.uint8), "no value above 1 of 255: pass 0 and 255"),
    (np.zeros((60, 8, 8), np.uint8), "images are all black"),
    (IMAGES[:3], "holds 3 images, and at least 10 are needed to split them"),
    (None, r"shape \(\)"),
]


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES, ids=[message for _, message in BAD_IMAGES])
def test_images_that_are_no_data_set_are_refused_and_not_stored(images, message, tmp_path):
    with pytest.raises(DataError, match=message):
        vampvae.train(images, runs_dir=tmp_path / "runs")
    assert not any(tmp_path.iterdir())


def test_a_tuple_is_one_list(monkeypatch, tmp_path):
    monkeypatch.setattr(vampvae.start, "fit", lambda config, *_: pytest.fail(f"{config.hidden_units}"))
    with pytest.raises(pytest.fail.Exception, match=r"\(40, 20\)"):
        vampvae.train("digits", network="dense", hidden_units=(40, 20), runs_dir=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, r"unrecognized arguments: --epoch=3; did you mean --epochs\?"),
        ({"lr": -1.0}, r"--lr -1.0 must be more than 0"),
        ({"epochs": "many"}, "argument --epochs: invalid int value: 'many'"),
        ({"model": "gan"}, "argument --model: invalid choice: 'gan'"),
        ({"lr": [1e-3, 1e-4]}, r"lr=\[0.001, 0.0001\] is not for one run in Python; see train.py --help"),
        ({"resume": "runs/a"}, "resume='runs/a' is not for one run"),
        ({"distribute": "processes"}, "distribute='processes' is not for one run"),
        ({"data_set": "mnist"}, "data_set='mnist' is not for one run"),
        ({"max_train_images": 5, "batch_size": 5}, "--num_pseudo_inputs 12 is more than the 5 training images"),
    ],
    ids=str,
)
def test_a_bad_setting_is_the_sentence_of_its_flag(settings, message, tmp_path):
    settings = {"prior": "vamp", "num_pseudo_inputs": 12, "runs_dir": tmp_path} | settings
    with pytest.raises(UserError, match=message):
        vampvae.train("digits", **settings)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: vampvae.evaluate(run, num_sample=5), r"--num_sample=5; did you mean --num_samples\?"),
        (lambda run: vampvae.evaluate(run, num_samples=1), "argument --num_samples: 1 must be at least 2"),
        (lambda run: vampvae.evaluate(run, compare=True), "compare=True is not for one run in Python; see evaluate.py"),
        (lambda run: run.log_px(IMAGES, split="val"), "split='val' is not for one run"),
        (lambda run: run.log_px(IMAGES, on="mnist"), "on='mnist' is not for one run"),
        (lambda run: vampvae.evaluate(run, data_dir="nowhere"), "nowhere cannot be read"),
        (lambda run: vampvae.plot(run, "sample"), "no figure 'sample'; choose from input, reconmanifold"),
        (lambda run: vampvae.plot(run, "layers"), "such a run has no layers"),
        (lambda run: vampvae.plot(run, "samples", "tsnee"), "argument --projection: invalid choice: 'tsnee'"),
        (lambda run: run.embed(IMAGES[:, :4]), r"images are \(4, 8, 1\), and .* was trained on images \(8, 8, 1\)"),
        (lambda run: run.sample(0), r"sample\(0\): it must be a whole number from 1"),
        (lambda run: run.sample(True), r"sample\(True\): it must be a whole number"),
        (lambda run: run.sample(2, seed=-1), r"seed\(-1\): it must be a whole number from 0"),
        (lambda run: run.reconstruct(IMAGES, seed=1.5), r"seed\(1.5\): it must be a whole number"),
        (lambda run: run.images("test", -1), r"images\(-1\): it must be a whole number from 1"),
        (
            lambda run: run.embed(IMAGES[..., None][0]),
            r"the shape of one image, \(8, 8, 1\): pass images\[None\]",
        ),
        (lambda run: vampvae.train(Path("cats")), r"pass images, or the name of a data set, as folder:cats"),
        (lambda run: vampvae.load("nowhere"), "nowhere is no run"),
        (lambda run: vampvae.train("cats"), "--data_set 'cats' is unknown; choose from mnist"),
        (lambda run: vampvae.train("folder:cats", data_dir="dogs"), "does not go with --data_set folder:PATH"),
    ],
)
def test_a_bad_call_is_one_sentence(call, message, of_array):
    with pytest.raises((UserError, DataError), match=message):
        call(of_array)


def test_it_is_imported_from_elsewhere_without_keras(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import vampvae; print('keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
def test_the_ten_lines_of_the_guide_run(tmp_path, monkeypatch):
    """On fewer epochs of a smaller network."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    small = "epochs=1, network_size=0.25, track='none'"
    code = code.replace("/path/to/the/clone", str(ROOT)).replace("epochs=20", small)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["run"].state == "finished" and np.isfinite(names["scores"]["log_px"])
    shutil.rmtree(tmp_path / "runs")
