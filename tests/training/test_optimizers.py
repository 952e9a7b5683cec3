"""Learning rates against their formulas, and what each optimizer does to a gradient."""

import itertools
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from experiment import Config
from runtime import internals
from runtime.errors import UserError
from training import optimizers

pytestmark = pytest.mark.keras
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX compiles it all as one")
STEPS, EPOCHS = 10, 20  # 200 steps


def rates(**settings):
    """The learning rate of each step of a run."""
    config = Config(**({"lr": 0.1, "epochs": EPOCHS} | settings))
    rate = optimizers.learning_rate(config, STEPS)
    one = [float(rate(step)) if callable(rate) else rate for step in range(STEPS * config.epochs)]
    return np.array(one)


def test_constant_and_plateau_begin_with_lr():
    assert set(rates()) == set(rates(lr_schedule="plateau")) == {0.1}


def test_cosine_is_half_a_cosine_down_to_the_final_value():
    for final, expected in ((None, 1e-3), (0.02, 0.02)):
        t = np.arange(200) / 200
        formula = expected + (0.1 - expected) * (1 + np.cos(np.pi * t)) / 2
        np.testing.assert_allclose(rates(lr_schedule="cosine", lr_final=final), formula, rtol=1e-4)


def test_restarts_begin_again_over_periods_of_twice_the_length_and_end_at_the_final_value():
    found = rates(lr_schedule="cosine_restarts", epochs=21)  # 210 steps: periods of 30, 60 and 120
    tops = np.flatnonzero(np.isclose(found, 0.1))
    assert tops.tolist() == [0, 30, 90]
    np.testing.assert_allclose(found[[15, 60, 150]], (0.1 + 1e-3) / 2, rtol=1e-4)
    np.testing.assert_allclose(found[[29, 89, 209]], 1e-3, rtol=0.3)


def test_step_falls_twice_by_the_same_factor():
    found = rates(lr_schedule="step", lr_final=1e-3)
    np.testing.assert_allclose(found[[0, 99, 102, 149, 152, 199]], [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3], rtol=1e-5)


def test_burda_is_that_of_the_iwae_paper():
    found = rates(lr_schedule="burda", lr=1e-3, epochs=50).reshape(50, STEPS)
    expected = np.repeat(1e-3 * 10 ** (-np.arange(5) / 7), [1, 3, 9, 27, 10])  # the fifth stage has 81 epochs
    np.testing.assert_allclose(found, np.tile(expected, (STEPS, 1)).T, rtol=1e-5)
    last = optimizers.learning_rate(Config(lr_schedule="burda", lr=1e-3, epochs=1), STEPS)
    ends = [float(last(3**7 // 2 * STEPS + step)) for step in (-1, 0, 10**6)]  # after 1 + 3 + ... + 3^6 epochs
    np.testing.assert_allclose(ends, [1e-3 * 10 ** (-6 / 7), 1e-4, 1e-4], rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_the_warm_up_is_linear_and_the_schedule_follows_it(schedule):
    found, plain = rates(lr_schedule=schedule, lr_warmup=5), rates(lr_schedule=schedule, epochs=EPOCHS - 5)
    np.testing.assert_allclose(found[:50], 0.1 * np.arange(1, 51) / 50, rtol=1e-5)
    np.testing.assert_allclose(found[50:], plain[:150], rtol=1e-4)


def first_step(**settings):
    """What one step with these gradients does to tensors of zeros."""
    tensors = [keras.Variable(np.zeros(gradient.shape, "float32")) for gradient in GRADIENTS]
    optimizer = optimizers.optimizer(Config(lr=0.1, **settings), STEPS, model_of(tensors))
    optimizer.build(tensors)
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in GRADIENTS], tensors)
    return optimizer, tensors


def first_moments(optimizer, tensors):
    return [internals.moments(optimizer, tensor)[0] for tensor in tensors]


def model_of(tensors, of_prior=()):
    return SimpleNamespace(trainable_variables=tensors, top_prior=SimpleNamespace(trainable_weights=list(of_prior)))


GRADIENTS = [np.float32([3, 4]), np.float32([0, 0, 1e-3]), np.full((2, 3, 3, 2), -2, "float32")]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_epsilon_makes_steps_of_small_gradients_smaller(name):
    root = np.sqrt(1 - 0.999)  # v is not yet corrected where epsilon is added
    for epsilon in (None, 1e-4):
        moved = np.asarray(first_step(optimizer=name, epsilon=epsilon)[1][1])[2]
        assert moved == pytest.approx(-0.1 * root * 1e-3 / (root * 1e-3 + (epsilon or 1e-7)), rel=1e-3)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_the_first_step_of_every_adam_is_the_sign_of_the_gradient(name):
    _, tensors = first_step(optimizer=name)
    for tensor, gradient in zip(tensors, GRADIENTS, strict=True):
        np.testing.assert_allclose(tensor, -0.1 * np.sign(gradient), atol=1e-3)


def test_normalised_gradients_have_norm_one_each_tensor_by_itself():
    optimizer, tensors = first_step(optimizer="adamnormgrad")
    assert optimizer.epsilon == 1e-8  # as in the paper's code
    for moment, gradient in zip(first_moments(optimizer, tensors), GRADIENTS, strict=True):
        np.testing.assert_allclose(moment, 0.1 * gradient / np.linalg.norm(gradient), rtol=1e-5)


def test_normalised_gradients_do_not_change_a_weight_without_a_gradient():
    """As the last layer of a deep hierarchy has on TensorFlow."""
    tensors = [keras.Variable(np.ones(3, "float32")) for _ in range(2)]
    optimizer = optimizers.optimizer(Config(lr=0.1, optimizer="adamnormgrad"), STEPS, model_of(tensors))
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([np.ones(3, "float32"), None], tensors)
    assert np.all(np.asarray(tensors[0]) < 1) and np.all(np.asarray(tensors[1]) == 1)


def test_the_norm_of_the_whole_gradient_is_clipped():
    optimizer, tensors = first_step(clip_norm=1.0)
    for moment, gradient in zip(first_moments(optimizer, tensors), GRADIENTS, strict=True):
        whole = np.sqrt(sum(np.square(one).sum() for one in GRADIENTS))
        np.testing.assert_allclose(moment, 0.1 * gradient / whole, rtol=1e-4)


@on_tensorflow
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_fused_updates_are_those_of_keras(name):
    """Over 50 steps, of gradients of very different sizes, of which some are often 0; with a kernel that decays."""
    rng, shapes = np.random.default_rng(0), {"kernel": (30, 20), "bias": (20,), "pseudo_inputs": (1, 3, 3, 2)}
    weights = [[keras.Variable(np.ones(shape, "float32"), name=n) for n, shape in shapes.items()] for _ in range(2)]
    plain = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name](0.1, global_clipnorm=5.0)
    fused = optimizers.optimizer(Config(lr=0.1, optimizer=name, clip_norm=5.0), STEPS, model_of(weights[0]))
    plain.exclude_from_weight_decay(var_list=weights[1][1:])
    for _ in range(50):
        gradients = [(rng.normal(size=s) * 10 ** rng.uniform(-6, 2, size=s)).astype("float32") for s in shapes.values()]
        gradients[0] *= rng.random(gradients[0].shape) < 0.3
        for optimizer, own in zip((fused, plain), weights, strict=True):
            optimizer.apply([keras.ops.convert_to_tensor(one) for one in gradients], own)
    for one, other in zip(fused.variables, plain.variables, strict=True):
        rounding = 1e-6 * np.abs(other).max()  # where moments cancel; and 1 - 0.999 is off by 1.3e-5 in float32
        np.testing.assert_allclose(one, other, rtol=5e-5, atol=rounding)
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)  # each has moved by up to 5


@on_tensorflow
def test_an_update_is_one_operation_of_tensorflow():
    import tensorflow as tf

    weights = [keras.Variable(np.ones(3, "float32")) for _ in range(4)]
    optimizer = optimizers.optimizer(Config(), STEPS, model_of(weights))
    optimizer.build(weights)
    update = tf.function(lambda: optimizer.apply([tf.ones(3)] * 4, weights)).get_concrete_function()
    graphs = [update.graph.as_graph_def().node, *(one.node_def for one in update.graph.as_graph_def().library.function)]
    kinds = [node.op for nodes in graphs for node in nodes]
    assert kinds.count("ResourceApplyAdam") == 4 and "AssignSubVariableOp" not in kinds


def fitted(batch_size, **settings):
    """A linear map, fitted to 80 points for two epochs in their order."""
    rng = np.random.default_rng(0)
    x, y, kernel = (rng.normal(size=shape).astype("float32") for shape in ((80, 3), (80, 2), (3, 2)))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.set_weights([kernel, np.ones(2, "float32")])
    chosen = optimizers.optimizer(Config(lr=0.1, **settings), 80 // batch_size, model_of(model.trainable_variables))
    model.compile(chosen, "mse")
    model.fit(x, y, batch_size, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "adamnormgrad", "clip_norm": 0.5}, {"optimizer": "adamw", "clip_norm": 0.5}],
    ids=lambda settings: settings["optimizer"],
)
def test_accumulated_gradients_are_those_of_a_larger_batch(settings):
    """They are clipped and divided by their norm when they are whole."""
    for one, large in zip(fitted(20, accumulate=2, **settings), fitted(40, **settings), strict=True):
        np.testing.assert_allclose(one, large, rtol=1e-5, atol=1e-6)
    assert any(np.abs(one - small).max() > 1e-2 for one, small in zip(fitted(20, **settings), fitted(40), strict=True))


def test_the_average_of_weights_counts_updates_and_not_accumulated_steps():
    """Before the third update, it is m w_1 + (1 - m) w_2."""
    weights = [keras.Variable(np.zeros(4, "float32"))]
    optimizer = optimizers.optimizer(Config(lr=0.1, accumulate=3, ema=0.8), STEPS, model_of(weights))
    optimizer.build(weights)
    seen = []
    for step in range(8):
        optimizer.apply([np.full(4, 1 + step, "float32")], weights)
        seen.append(np.array(weights[0]))
    assert [not np.array_equal(*pair) for pair in itertools.pairwise(seen)] == [
        False,
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    np.testing.assert_allclose(internals.averages(optimizer)[0], 0.8 * seen[2] + 0.2 * seen[5], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr_final": 1e-5}, "--lr_final 1e-05 needs a --lr_schedule that falls"),
        ({"lr_final": 1e-5, "lr_schedule": "burda"}, "needs a --lr_schedule that falls to it"),
        ({"lr_final": 1.0, "lr_schedule": "step"}, "--lr_final 1.0 must be at most --lr"),
        ({"lr_warmup": 250}, "--lr_warmup 250 must be less than --epochs 250"),
        ({"lr_warmup": 1, "lr_schedule": "plateau"}, "does not go with --lr_schedule plateau"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        Config(**settings)


def test_adamw_decays_kernels_alone():
    shapes = {"kernel": (2, 3), "bias": (3,), "logvar": (2, 2, 1), "pseudo_inputs": (4, 5)}
    tensors = [keras.Variable(np.ones(shape, "float32"), name=name) for name, shape in shapes.items()]
    kernel, *others = tensors
    optimizer = optimizers.optimizer(Config(lr=0.1, optimizer="adamw"), STEPS, model_of(tensors, tensors[3:]))
    optimizer.build(tensors)
    optimizer.apply([np.zeros(tensor.shape, "float32") for tensor in tensors], tensors)
    assert np.all(np.asarray(kernel) < 1) and all(np.all(np.asarray(one) == 1) for one in others)
