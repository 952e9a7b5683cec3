"""Learning rates against their formulas, and what each optimizer does to a gradient."""

import itertools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import slow_on_jax

import models
from experiment import Config
from models.weight_names import named_weights
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


@slow_on_jax
def test_restarts_begin_again_over_periods_of_twice_the_length_and_end_at_the_final_value():
    found = rates(lr_schedule="cosine_restarts", epochs=21)  # 210 steps: periods of 30, 60 and 120
    tops = np.flatnonzero(np.isclose(found, 0.1))
    assert tops.tolist() == [0, 30, 90]
    np.testing.assert_allclose(found[[15, 60, 150]], (0.1 + 1e-3) / 2, rtol=1e-4)
    np.testing.assert_allclose(found[[29, 89, 209]], 1e-3, rtol=0.3)


def test_step_falls_twice_by_the_same_factor():
    found = rates(lr_schedule="step", lr_final=1e-3)
    np.testing.assert_allclose(found, np.repeat([0.1, 0.01, 1e-3], [100, 50, 50]), rtol=1e-5)


def test_step_falls_in_the_shortest_training():
    rate = optimizers.learning_rate(Config(lr=0.1, lr_schedule="step", lr_final=1e-3, epochs=2), 1)
    np.testing.assert_allclose([rate(0), rate(1)], [0.1, 0.01], rtol=1e-5)


def test_burda_is_that_of_the_iwae_paper():
    found = rates(lr_schedule="burda", lr=1e-3, epochs=50).reshape(50, STEPS)
    expected = np.repeat(1e-3 * 10 ** (-np.arange(5) / 7), [1, 3, 9, 27, 10])  # the fifth stage has 81 epochs
    np.testing.assert_allclose(found, np.tile(expected, (STEPS, 1)).T, rtol=1e-5)
    last = optimizers.learning_rate(Config(lr_schedule="burda", lr=1e-3, epochs=1), STEPS)
    ends = [float(last(3**7 // 2 * STEPS + step)) for step in (-1, 0, 10**6)]  # after 1 + 3 + ... + 3^6 epochs
    np.testing.assert_allclose(ends, [1e-3 * 10 ** (-6 / 7), 1e-4, 1e-4], rtol=1e-5)


def test_quarter_is_that_of_the_monte_carlo_vae_code():
    found = rates(lr_schedule="quarter", lr=1e-3, epochs=40).reshape(40, STEPS)
    expected = np.repeat(1e-3 * 0.25 ** np.arange(4), 10)
    np.testing.assert_allclose(found, np.tile(expected, (STEPS, 1)).T, rtol=1e-5)


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
    prior = SimpleNamespace(trainable_weights=list(of_prior))
    return SimpleNamespace(trainable_variables=tensors, top_prior=prior, weights_of_u=list(of_prior))


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
    chosen.build(model.trainable_variables)
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
        ({"skip_norm": 9.0, "accumulate": 2}, "--skip_norm 9.0 does not go with --accumulate, whose steps belong"),
        ({"pretrain_prior": 9, "epochs": 9, "model": "dvp"}, "--pretrain_prior 9 must be less than --epochs 9"),
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


def guarded(**settings):
    """A linear map, fitted to 80 points by 8 steps, of which the sixth has a huge gradient, and its optimizer."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(80, n)).astype("float32") for n in (3, 2))
    y[50:60] *= 1e6
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.set_weights([np.ones((3, 2), "float32"), np.ones(2, "float32")])
    weights, config = model.trainable_variables, Config(lr=0.1, skip_norm=1e5, ema=0.9, **settings)
    model.compile(optimizers.optimizer(config, 8, model_of(weights)), "mse")
    model.optimizer.build(weights)
    seen = []
    for at in range(0, 80, 10):
        model.train_on_batch(x[at : at + 10], y[at : at + 10])
        seen.append([np.array(one) for one in (*weights, *model.optimizer.variables)])
    return seen, model.optimizer


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_a_step_with_a_large_gradient_changes_nothing_but_the_counts_of_steps(name):
    seen, optimizer = guarded(optimizer=name)
    names = ["kernel", "bias", *(one.name for one in optimizer.variables)]
    changed = {n for n, before, after in zip(names, seen[4], seen[5], strict=True) if not np.array_equal(before, after)}
    assert changed == {"iteration", "norms", "skipped"}  # not `updates`
    assert all(not np.array_equal(before[0], after[0]) for before, after in (seen[3:5], seen[5:7]))
    assert float(optimizer.skipped) == 1 and float(optimizer.norms) > 1e5 and int(optimizer.iterations) == 7


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_skipped_first_steps_are_as_if_they_had_not_been(name):
    """For weights, moments, and averages, which are the weights until there is an update."""
    found = []
    for norms in ([9e9, 9e9, 1, 2, 3], [1, 2, 3]):
        weight = keras.Variable(np.full(4, 5.0, "float32"))
        settings = {"lr": 0.1, "optimizer": name, "ema": 0.9, "skip_norm": 1e5}
        optimizer = optimizers.optimizer(Config(**settings), STEPS, model_of([weight]))
        optimizer.build([weight])
        for norm in norms:
            optimizer.apply([np.full(4, norm / 2, "float32")], [weight])
            if norm > 1e5:
                np.testing.assert_array_equal(internals.averages(optimizer)[0], weight)
        counts = ("iteration", "norms", "skipped")
        found.append([np.array(one) for one in (weight, *optimizer.variables) if one.name not in counts])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one[None], other[None], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_weights_that_rest_in_the_first_steps_begin_as_others_do(name):
    """Without a trace of their decay before; the corrections of Adam count from their first update."""
    first, later, fresh = (keras.Variable(np.full(3, 2.0, "float32"), name="kernel") for _ in range(3))
    settings = {"lr": 0.1, "optimizer": name, "weight_decay": 0.1}
    pretrained = Config(model="dvp", pretrain_prior=5, **settings)
    resting = optimizers.optimizer(pretrained, STEPS, model_of([first, later], [first]))
    plain = optimizers.optimizer(Config(**settings), STEPS, model_of([fresh]))
    resting.build([first, later])
    plain.build([fresh])
    for step in range(5 * STEPS):
        resting.apply([np.full(3, 1.0, "float32"), np.full(3, 1.0 + step, "float32")], [first, later])
    np.testing.assert_array_equal(later, 2.0)
    assert np.all(np.asarray(first) < 0)
    for step in range(3):
        for optimizer, weights in ((resting, [first, later]), (plain, [fresh])):
            optimizer.apply([np.full(3, 1.0 + step, "float32")] * len(weights), weights)
        np.testing.assert_allclose(later, fresh, rtol=1e-5)


def test_a_norm_that_is_not_finite_is_not_counted():
    weight = keras.Variable(np.ones(4, "float32"))
    optimizer = optimizers.optimizer(Config(skip_norm=1e5), STEPS, model_of([weight]))
    optimizer.build([weight])
    for value in (1.0, 3e38):
        optimizer.apply([np.full(4, value, "float32")], [weight])
    assert float(optimizer.skipped) == 1 and float(optimizer.norms) == 2


def test_an_optimizer_that_leaves_nothing_out_steps_as_without_its_guard():
    for one, other in zip(fitted(20, skip_norm=1e9, ema=0.9), fitted(20, ema=0.9), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_weight_decay_is_an_l2_term_of_kernels(name):
    """The step at a gradient of zeros is that at the gradient 0.1 w of a kernel."""
    tensors = [keras.Variable(np.full(3, 2.0, "float32"), name=n) for n in ("kernel", "bias", "kernel")]
    plain = [keras.Variable(np.full(3, 2.0, "float32"))]
    settings = {"lr": 0.1, "optimizer": name}
    decaying = optimizers.optimizer(Config(weight_decay=0.1, **settings), STEPS, model_of(tensors, tensors[2:]))
    without = optimizers.optimizer(Config(**settings), STEPS, model_of(plain))
    for optimizer, own, gradient in ((decaying, tensors, 0.0), (without, plain, 0.2)):
        optimizer.build(own)
        optimizer.apply([np.full(3, gradient, "float32") for _ in own], own)
    np.testing.assert_allclose(tensors[0], plain[0], rtol=1e-6)
    assert np.all(np.asarray(tensors[0]) < 1.95) and all(np.all(np.asarray(one) == 2) for one in tensors[1:])


def test_adamw_decays_by_its_own_rule():
    kernel = keras.Variable(np.full(3, 2.0, "float32"), name="kernel")
    optimizer = optimizers.optimizer(Config(lr=0.1, optimizer="adamw", weight_decay=0.05), STEPS, model_of([kernel]))
    optimizer.build([kernel])
    optimizer.apply([np.zeros(3, "float32")], [kernel])
    np.testing.assert_allclose(kernel, 2 * (1 - 0.1 * 0.05), rtol=1e-6)


@slow_on_jax
def test_p_of_u_is_trained_before_all_else():
    """In the first epoch r(u|x) and p(u) alone change; a decay of the other kernels waits, too."""
    settings = {"model": "dvp", "scales": "1x4,1x2", "channels": 4, "encoder_blocks": 1, "context_size": 3}
    config = Config(**settings, score_channels=8, score_blocks=1, pretrain_prior=1, optimizer="adamw", weight_decay=0.1)
    model = models.build(config, (4, 4, 1))
    model.compile(optimizers.optimizer(config, 1, model))  # with one step in an epoch
    model.optimizer.build(model.trainable_variables)
    x, seen = np.random.default_rng(0).random((5, 4, 4, 1)).astype("float32"), []
    for _ in range(3):
        seen.append({name: np.array(one) for name, one in named_weights(model).items()})
        model.train_on_batch(x)
    changed = [{name for name in before if not np.array_equal(before[name], after[name])}
               for before, after in itertools.pairwise(seen)]  # fmt: skip
    assert {name.split("/")[0] for name in changed[0]} == {"context", "prior"}
    assert {name.split("/")[0] for name in changed[1]} == {"context", "prior", "encoder", "decoder"}
