"""What the benchmarks make of what they measure: operations, exponents and tables; and that they go on."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, slow_on_jax

from benchmarks import epoch, gpu, growth, likelihood, train_step

FIRST = 784 * 2 * 300  # multiply-adds of the dense VAE's first layer, and of its encoder and decoder
MLP = FIRST + 300 * 2 * 300 + 40 * 2 * 300 + 300 * 2 * 300 + 300 * 784


def row(theirs=2.0, ours=1.0, own=40.0):
    """A row as compare() of train_step.py gives it."""
    ready = {"theirs": {"first": 4.0, "own": 50.0}, "ours": {"first": 8.0, "operations": 3e9, "own": own}}
    answers = {"theirs": [[theirs, 100.0], [9.0, 150.0], [0.1, 100.0]], "ours": [[ours, 300.0, 1.5]]}
    return train_step.row_of("vae", "vamp", "torch", ready, answers, 6e9)


def test_a_row_has_medians_their_ratio_and_the_most_memory():
    expected = {"torch s/step": 2.0, "ours s/step": 1.0, "ratio": 0.5, "of peak": 0.5, "MiB ratio": 2.0}
    assert expected.items() <= row().items()
    assert (row()["torch first step s"], row()["first step s"]) == (4.0, 8.0)
    assert (row()["torch own MiB"], row()["ours own MiB"], row()["own MiB ratio"]) == (50.0, 40.0, 0.8)
    assert not [name for name in row(own=None) if "own" in name]


def test_memory_of_its_own_is_what_work_takes_and_gives_back_and_no_file(tmp_path):
    (tmp_path / "file").write_bytes(bytes(2**25))

    def work(own):
        held = [np.memmap(tmp_path / "file", np.uint8, "r").sum(), np.ones(own, np.uint8)]
        time.sleep(0.1)
        del held

    before, without, most = (train_step.peak_of_own(w) for w in (lambda: None, lambda: work(0), lambda: work(2**25)))
    assert abs(without - before) < 8 and most - before == pytest.approx(32, abs=8)


ECHO = "import sys; print(0.5, flush=True); [print([float(line), {mib}], flush=True) for line in sys.stdin]"


def starting(code):
    """A function that starts a Python process which runs this code."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return lambda: subprocess.Popen([sys.executable, "-c", code], **pipes)


def test_workers_are_asked_in_turn_and_ended():
    seen = []
    starts = {name: starting(ECHO.format(mib=mib)) for name, mib in (("a", 1), ("b", 2))}
    ready, answers = train_step.in_turn(starts, 2, 3, lambda processes, ready: seen.append((processes, ready)))
    assert ready == {"a": 0.5, "b": 0.5} and answers == {"a": [[3.0, 1]] * 2, "b": [[3.0, 2]] * 2}
    assert len(seen) == 2 and all(process.wait(10) for process in seen[0][0].values())


def test_a_side_that_ends_is_said():
    with pytest.raises(RuntimeError, match="ended before it was measured"):
        train_step.in_turn({"a": starting("pass")}, 1, 1)


def test_what_is_left_out_is_as_usual_for_the_network(capsys):
    conv, mlp = train_step.parsed([]), train_step.parsed(["--network", "mlp", "--steps", "3"])
    assert (conv.model, conv.latent_dim, conv.batch_size, conv.steps) == (["vae", "hvae"], 2, 256, 2)
    assert (mlp.model, mlp.latent_dim, mlp.batch_size, mlp.steps) == (["vae"], 40, 100, 3)
    with pytest.raises(SystemExit):
        train_step.parsed(["--network", "mlp", "--model", "hvae"])
    assert "written for --model vae only" in capsys.readouterr().err
    assert train_step.parsed(["--network", "mlp", "--model", "hvae", "--against", "jax"]).model == ["hvae"]


@pytest.mark.keras
@pytest.mark.parametrize("network, expected", [("conv", 70.97e9), ("mlp", 100 * (6 * MLP - 2 * FIRST))])
def test_operations_of_a_step_are_those_counted_by_hand(network, expected):
    import models
    from experiment.config import Config

    size = {"network_size": 4.0} if network == "conv" else {}
    config = Config(network=network, prior="standard", latent_dim=40 if network == "mlp" else 2, **size)
    net = models.build(config, (28, 28, 1))
    batch = 256 if network == "conv" else 100
    assert train_step.step_operations(net, batch, 0) == pytest.approx(expected, rel=1e-3)
    pseudo = train_step.step_operations(net, batch, 7) - train_step.step_operations(net, batch, 0)
    encoder = next(layer for layer in net.layers if layer.name.startswith("sequential"))
    assert pseudo == 7 * 6 * train_step.multiply_adds(encoder)


@pytest.mark.slow
@slow_on_jax
@pytest.mark.keras
def test_bare_steps_train_as_fit_does():
    import keras

    import models
    from experiment.config import Config

    config = Config(network="mlp", latent_dim=3, num_pseudo_inputs=5, prior="vamp", hidden_units=7)
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    trained = []
    for kind in ("bare", "on_batch"):
        keras.utils.set_random_seed(0)
        net = models.build(config, (8, 8, 1), True, np.zeros((5, 8, 8, 1), np.float32))
        net.compile(keras.optimizers.Adam(1e-2))
        net.train_on_batch(images)
        if kind == "bare":
            train_step.bare_steps(net, [images] * 3)
        for _ in range(0 if kind == "bare" else 3):
            net.train_on_batch(images)
        trained.append([keras.ops.convert_to_numpy(weight) for weight in net.weights])
    for bare, usual in zip(*trained, strict=True):
        np.testing.assert_allclose(bare, usual, rtol=1e-4, atol=1e-6)


def grown(backend, power):
    """Points of a backend on exact power laws: seconds ~ value^power, MiB the same everywhere."""
    scale = {name: lambda s, name=name: s[name] ** power / growth.USUAL[name] ** power for name in growth.VALUES}
    found = []
    for one, settings in growth.points([backend]):
        seconds = float(np.prod([factor(settings) for factor in scale.values()]))
        found.append({"backend": one, "settings": settings, "seconds": seconds, "cpu": 2 * seconds, "mib": 500.0})
    return found


def test_exponents_of_exact_power_laws():
    assert growth.exponent([1, 10, 20], [7.0, 1.0, 2.0**1.5]) == pytest.approx(1.5)
    assert growth.exponent([1], [1.0]) is None
    rows = growth.exponents(grown("tensorflow", 0.75))
    assert len(rows) == 3 * len(growth.VALUES)
    for one in rows:
        assert one["tensorflow"] == pytest.approx(0.75 if "seconds" in one["of"] else 0, abs=1e-9)
        assert one["jax"] is None


def test_each_setting_is_varied_alone_and_no_point_is_measured_twice():
    found = growth.points(["jax"])
    assert len(found) == sum(map(len, growth.VALUES.values())) - len(growth.VALUES) + 1
    assert all(sum(settings[name] != usual for name, usual in growth.USUAL.items()) <= 1 for _, settings in found)


def test_growth_goes_on_with_the_points_that_are_missing(monkeypatch, tmp_path):
    asked = []

    def measured(backend, settings, args):
        asked.append(settings)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return {"backend": backend, "settings": settings, "seconds": 1.0, "mib": 2.0}

    monkeypatch.setattr(growth, "RESULT", tmp_path / "growth.json")
    monkeypatch.setattr(growth, "measured", measured)
    args = SimpleNamespace(backend=["jax"], rounds=1, steps=1, hardware="a machine")
    with pytest.raises(KeyboardInterrupt):
        growth.measure(args)
    assert len(growth.kept()) == 3
    growth.measure(args)
    assert len(asked) == 1 + len(growth.points(["jax"])) and asked[3] == asked[4]
    growth.measure(args)
    assert len(asked) == 1 + len(growth.points(["jax"]))


def test_growth_is_drawn_with_what_there_is():
    figure = growth.drawn(grown("jax", 0.5))
    assert len(figure.axes) == 8
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["tensorflow", "jax"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.50"]


def test_overhead_is_in_percent_of_bare_steps_and_what_is_once_an_epoch_weighs_less_in_a_full_one():
    one = {"epoch": [12.0, 20.0], "steps": [10.2, 18.0], "validation": [1.0, 1.5], "bare": [10.0, 17.0]}
    found = {"steps": 30, "epochs": [one, one, one | {"epoch": [99.0, 99.0]}]}
    shown = epoch.summary("conv", "jax", found)
    assert shown["outside %"] == pytest.approx(10) and shown["with validation %"] == pytest.approx(20)
    assert shown["outside, CPU %"] == pytest.approx(100 * (18.5 / 17 - 1))
    part = epoch.ROWS["conv"]["max_train_images"] / epoch.FULL
    assert shown["of a full epoch %"] == pytest.approx(2 + 8 * part)
    whole = epoch.summary("mlp", "jax", found)
    assert whole["of a full epoch %"] == pytest.approx(whole["outside %"])


def test_a_row_takes_the_place_of_an_earlier_one_only(monkeypatch, tmp_path):
    monkeypatch.setattr(epoch, "RESULT", tmp_path / "epoch.json")
    for backend, value in (("jax", 1), ("tensorflow", 2), ("jax", 3)):
        epoch.keep({"row": "mlp", "backend": backend, "epoch s": value}, {"hardware": "a machine"})
    assert [one["epoch s"] for one in epoch.kept()] == [2, 3]


def test_stages_that_are_done_are_not_done_again_and_one_that_fails_stops_no_other(tmp_path, capsys):
    called = []

    def stage(name):
        def run():
            called.append(name)
            if name == "b" and called.count("b") == 1:
                raise gpu.Failed("no reason")
            return {"name": name}

        return run

    todo = {name: stage(name) for name in "abc"}
    assert gpu.work(todo, tmp_path) == ["b"] and "error: b: no reason" in capsys.readouterr().err
    assert gpu.work(todo, tmp_path) == [] and called == ["a", "b", "c", "b"]
    assert gpu.done(tmp_path) == {name: {"name": name} for name in "abc"}


def test_without_its_device_nothing_is_measured(monkeypatch, tmp_path, capsys):
    for jax, torch, blamed in (("cpu", "gpu", "JAX"), ("gpu", "cpu", "PyTorch")):
        sees = {gpu.SEES: f"a note\n{jax};a kind\n", gpu.TORCH_SEES: f"{torch}\n"}
        monkeypatch.setattr(gpu, "called", lambda _, code, sees=sees: sees[code])
        assert gpu.work(gpu.stages(gpu.FULL, tmp_path), tmp_path) == ["machine"]
        assert f"{blamed} sees a cpu, and a gpu is needed" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_results_of_another_device_are_not_gone_on_with(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name: "1.0")
    for kind in ("a kind", "another"):
        sees = {gpu.SEES: f"gpu;{kind}\n", gpu.TORCH_SEES: "gpu\n"}
        monkeypatch.setattr(gpu, "called", lambda _, code, sees=sees: sees[code])
        failed = gpu.work({"machine": lambda: gpu.machine(gpu.FULL, tmp_path), "more": lambda: {}}, tmp_path)
        assert failed == ([] if kind == "a kind" else ["machine"])
    assert "another" in capsys.readouterr().err and gpu.done(tmp_path)["machine"]["device"] == "a kind"


def test_gpu_needs_no_package_before_it_has_installed_what_is_missing():
    code = "import sys; sys.path = [one for one in sys.path if 'site-packages' not in one]; import benchmarks.gpu"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SCRIPTS = [path.stem for path in sorted((ROOT / "benchmarks").glob("*.py")) if "ArgumentParser" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_a_command_line(name):
    command = [sys.executable, f"benchmarks/{name}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "atheris" in done.stderr:
        pytest.skip("needs atheris")
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


def test_the_table_has_the_numbers_of_the_stages_and_says_what_is_missing():
    found = {"machine": {"device": "a GPU", "cores": 16, "versions": {"jax": "1.2"}}, "step_hvae_vamp": row(0.02, 0.01)}
    found["epoch_hvae_vamp"] = {"run": "x", "epoch s": 6.0, "250 epochs min": 25.0}
    score = {"seconds": 50.0, "process s": 70.0, "log_px": -80.0, "num_images": 10_000, "num_samples": 5000}
    lines = gpu.table(found | {"likelihood_mlp": score}).splitlines()
    assert lines[0].startswith("a GPU, 16 cores, jax 1.2, mixed_bfloat16; ")
    assert "| hvae | vamp | 100.00 | 10.00 | 0.10 | 50.00 | 8.0 | 2.00 | 6.00 | 25.0 |" in lines
    assert "| vae | standard | not run here |  |  |  |  |  | not run here |  |" in lines
    assert "| mlp | 10,000 | 5,000 | 50.00 | 70.00 | -80.00 |" in lines and "| conv | not run here | | | | |" in lines
    columns = {line.count("|") for line in lines[2:8]}
    assert columns == {11}


def test_densities_as_commonly_written_are_the_same():
    from keras import ops

    from models.distributions import Mixture, Normal
    from models.pixels import Bernoulli

    rng = np.random.default_rng(0)
    log_weights = np.log(np.full(5, 0.2, "float32"))
    parts = (log_weights, *rng.normal(size=(2, 5, 3)).astype("float32"))
    top = Mixture(*map(ops.convert_to_tensor, parts))
    law = Bernoulli(ops.convert_to_tensor(rng.normal(size=(4, 8, 8, 1)).astype("float32")))
    x = ops.convert_to_tensor((rng.random((4, 8, 8, 1)) < 0.5).astype("float32"))
    z = ops.convert_to_tensor(rng.normal(size=(2, 4, 3)).astype("float32"))
    plain_top, plain_law = likelihood.commonly_written(top, law)
    assert type(plain_top).log_parts is not Mixture.log_parts and type(plain_law).log_prob is not Bernoulli.log_prob
    np.testing.assert_allclose(plain_top.log_prob(z), top.log_prob(z), rtol=1e-5)
    np.testing.assert_allclose(plain_law.log_prob(x), law.log_prob(x), rtol=1e-5)
    standard = Normal(top.mean[0], top.logvar[0])
    assert likelihood.commonly_written(standard, law)[0] is standard


def test_an_epoch_lasts_from_state_to_state(tmp_path):
    (tmp_path / "last").mkdir()
    for number, modified in ((2, 100.0), (3, 107.5)):
        path = tmp_path / "last" / f"epoch{number:09d}_step000000000.safetensors"
        path.touch()
        os.utime(path, (modified, modified))
    assert gpu.between_states(tmp_path) == 7.5
    path.unlink()
    with pytest.raises(gpu.Failed, match="not the states of two epochs"):
        gpu.between_states(tmp_path)


def test_only_what_is_used_and_missing_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "REQUIREMENTS", tmp_path / "requirements.txt")
    gpu.REQUIREMENTS.write_text("# a note\ntensorflow==2.21.0\nnumpy==0.1\nno-such-thing==2.0  # why\n-r other.txt\n")
    assert gpu.missing() == ["no-such-thing==2.0"]


def test_what_cannot_be_installed_is_said_and_ends_nothing(monkeypatch, capsys):
    codes = {"a==1": 1, "b==2": 0}
    monkeypatch.setattr(gpu.subprocess, "run", lambda words, check: SimpleNamespace(returncode=codes[words[-1]]))
    gpu.install(list(codes))
    assert capsys.readouterr().err == "warning: a==1 could not be installed; going on without it\n"
