"""What a processor gains from half precision."""

import pytest

from experiment import Config
from grids.configs import configs_of
from runtime import processor
from runtime.command import Parser
from train import add_arguments
from training.progress import expected_time

XEON = "processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"


@pytest.fixture
def gaining(monkeypatch):
    """A function that makes the processor one with these instructions, and the backend TensorFlow on no GPU."""

    def has(*names, backend="tensorflow", gpus=()):
        monkeypatch.setattr(processor, "instructions", lambda: set(names))
        monkeypatch.setattr(processor, "gpus", lambda: gpus)
        monkeypatch.setenv("KERAS_BACKEND", backend)

    return has


@pytest.mark.parametrize(
    "text, expected", [(XEON, {"fpu", "avx512f", "amx_bf16", "avx512_bf16"}), ("Features: neon", set())]
)
def test_instructions_are_those_that_the_system_names(monkeypatch, tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.instructions.__wrapped__() == expected
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert processor.instructions.__wrapped__() == set()


def test_the_best_instructions_count_and_only_where_they_were_measured(gaining):
    for names, circumstances, expected in [
        (("avx512_bf16", "amx_bf16"), {}, processor.GAINS["amx_bf16"]),
        (("avx512_bf16",), {}, processor.GAINS["avx512_bf16"]),
        (("avx512f",), {}, 1),
        (("amx_bf16",), {"backend": "jax"}, 1),
        (("amx_bf16",), {"gpus": ["0"]}, 1),
    ]:
        gaining(*names, **circumstances)
        assert processor.gain_of_bfloat16() == expected


@pytest.mark.parametrize(
    "settings, is_faster",
    [({}, True), ({"network_size": 1}, False), ({"network": "mlp"}, False), ({"model": "ladder"}, False)],
)
def test_auto_is_settled_when_the_run_is_made(gaining, settings, is_faster):
    gaining("amx_bf16")
    chosen = Config(precision="auto", **settings)
    assert chosen.precision == ("mixed_bfloat16" if is_faster else "float32")
    assert chosen.training_id == Config(precision=chosen.precision, **settings).training_id
    gaining()
    assert Config(precision="auto", **settings) == Config(**settings)


def test_each_run_of_a_grid_gets_its_own_precision(gaining):
    gaining("avx512_bf16")
    parser = Parser()
    add_arguments(parser)
    words = ["--gs_key", "sizes", "--network_size", "1", "4", "--precision", "auto"]
    found = {config.network_size: config.precision for config in configs_of(parser.parse_args(words))}
    assert found == {1.0: "float32", 4.0: "mixed_bfloat16"}


@pytest.mark.parametrize(
    "precision, epochs, said", [("float32", 250, True), ("mixed_bfloat16", 250, False), ("float32", 1, False)]
)
def test_hours_in_float32_are_answered_by_the_faster_precision(gaining, precision, epochs, said):
    gaining("avx512_bf16")
    text = expected_time(1.0, epochs, 100, 20, Config(epochs=epochs, precision=precision))
    assert ("with --precision mixed_bfloat16 a step is about 1.5 times as fast on this processor" in text) == said
