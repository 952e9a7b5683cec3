"""Compiled models that several threads call at once."""

import time
from types import SimpleNamespace

import keras
from conftest import on_tensorflow

from runtime import threads


@on_tensorflow
def test_calls_on_tensorflow_wait_for_one_another(monkeypatch):
    """Two at once give wrong numbers, or crash, where a convolution and a residual sum are one operation of oneDNN."""
    running, seen = [], []

    def call(model, x):
        running.append(x)
        seen.append(len(running))
        time.sleep(0.01)
        running.remove(x)

    monkeypatch.setattr(keras.Model, "predict_on_batch", call)
    predict = threads.predictor(SimpleNamespace(make_predict_function=lambda: None))
    threads.side_by_side(lambda part, stopped: [predict(part) for _ in range(3)], [0, 1])
    assert seen == [1] * 6
