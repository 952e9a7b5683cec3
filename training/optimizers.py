"""Optimizers and learning rates by the settings of a run: Keras' own, and that of the VampPrior paper's code."""

import itertools
import math

import keras
from keras import ops
from keras.optimizers import schedules

import models
from runtime import internals

FINAL = 0.01  # the usual --lr_final, as a fraction of --lr


class Fused:
    """Makes an Adam of Keras update each weight and its moments by one operation of TensorFlow instead of fifteen.

    The rule is the same (Kingma & Ba 2015, section 2, in its more efficient order), in one pass over memory.
    """

    def update_step(self, gradient, variable, learning_rate):
        if keras.backend.backend() != "tensorflow" or self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        first, second = internals.moments(self, variable)
        handles = {"var": variable.handle, "m": first.value.handle, "v": second.value.handle}
        values = {"lr": learning_rate, "beta1": self.beta_1, "beta2": self.beta_2, "epsilon": self.epsilon}
        values = {name: tf.cast(value, variable.dtype) for name, value in (values | {"grad": gradient}).items()}
        step = tf.cast(self.iterations + 1, variable.dtype)
        powers = {"beta1_power": values["beta1"] ** step, "beta2_power": values["beta2"] ** step}
        return tf.raw_ops.ResourceApplyAdam(**handles, **values, **powers)


class Adam(Fused, keras.optimizers.Adam):
    """Keras' Adam, fused."""


class AdamW(Fused, keras.optimizers.AdamW):
    """Keras' AdamW, fused."""


class AdamNormGrad(internals.ChangesGradients, Adam):
    """Adam on gradients that are divided by their L2 norm, each tensor by its own (Tomczak & Welling 2018, code)."""

    def __init__(self, learning_rate, epsilon=1e-8, **options):  # as there; Keras' usual one is 1e-7
        super().__init__(learning_rate, epsilon=epsilon, **options)

    def changed(self, grads):
        # not ops.norm, which on TensorFlow takes vectors and matrices only
        return [g / (ops.sqrt(ops.sum(ops.square(g))) + 1e-12) for g in grads]


class Guarded:
    """Lets an optimizer of Keras skip steps, freeze weights, and decay weights by an L2 term in their gradients.

    A step whose gradient has a norm above `skip_norm` changes no weight, moment or average; it counts for the learning
    rate alone. In the first `first_steps` steps only the weights whose ids are in `of_first` change. To the gradient of
    a weight whose id is in `decaying` comes `l2` times the weight, which the norm does not count. `norms` and `skipped`
    are the sum of the finite norms of gradients and the number of steps left out since they were last set to 0. It must
    be built before its first step.
    """

    is_later = False  # whether what is being changed rests in the first steps

    def guard(self, skip_norm=math.inf, l2=0.0, decaying=(), first_steps=0, of_first=()):
        """Says what is left out; returns the optimizer, which has not been built before."""
        self.skip_norm, self.l2, self.decaying = skip_norm, l2, frozenset(decaying)
        self.first_steps, self.of_first = first_steps, frozenset(of_first)
        return self

    def build(self, variables):
        super().build(variables)
        self.norms, self.skipped = (self.add_variable((), name=name) for name in ("norms", "skipped"))
        counts = (self.add_variable((), dtype="int32", name=name) for name in ("updates", "later_updates"))
        self.updates, self.later_updates = counts  # the second without those of the first steps

    @property
    def iterations(self):
        """The number of updates before this one: moments and averages begin with the first, whichever step that is."""
        counter = self.later_updates if self.is_later else self.updates
        return counter // (self.gradient_accumulation_steps or 1)

    def update_step(self, gradient, variable, learning_rate):
        weight = internals.weights(self)[internals.place(self, variable)]
        self.is_later = self.first_steps > 0 and id(weight) not in self.of_first
        super().update_step(gradient, variable, learning_rate)
        self.is_later = False

    def apply(self, grads, trainable_variables=None):
        weights, steps = internals.weights(self), internals.steps(self)
        is_first = steps < self.first_steps
        rests = [ops.logical_and(is_first, id(weight) not in self.of_first) for weight in weights]
        grads = [g if g is None else ops.where(one, 0.0, g) for g, one in zip(grads, rests, strict=True)]
        norm = ops.sqrt(sum(ops.sum(ops.square(g)) for g in grads if g is not None))
        skips = norm > self.skip_norm
        kept = [(one, skips) for one in self.variables if one is not steps]
        kept += [(weight, ops.logical_or(skips, one)) for weight, one in zip(weights, rests, strict=True)]
        if self.use_ema and self.skip_norm < math.inf:  # before the first update, the average is what is averaged
            for weight, average in zip(weights, internals.averages(self), strict=True):
                values = map(ops.convert_to_tensor, (weight, average))
                average.assign(ops.where(self.updates == 0, *values))
        before = [ops.copy(variable) for variable, _ in kept]
        for at, weight in enumerate(weights):
            if self.l2 and id(weight) in self.decaying and grads[at] is not None:
                grads[at] = grads[at] + ops.where(rests[at], 0.0, self.l2 * weight)
        super().apply(grads, trainable_variables)
        for (variable, is_kept), value in zip(kept, before, strict=True):
            variable.assign(ops.where(is_kept, value, ops.convert_to_tensor(variable)))
        self.norms.assign_add(ops.where(ops.isfinite(norm), norm, 0.0))
        self.skipped.assign_add(ops.cast(skips, "float32"))
        self.updates.assign_add(ops.cast(ops.logical_not(skips), "int32"))
        self.later_updates.assign_add(ops.cast(ops.logical_not(ops.logical_or(skips, is_first)), "int32"))


OPTIMIZERS = {"adam": Adam, "adamax": keras.optimizers.Adamax, "adamw": AdamW, "adamnormgrad": AdamNormGrad}


class WarmUp(schedules.LearningRateSchedule):
    """A learning rate that rises linearly from 0 over `steps` steps, and then is `after`, a number or a schedule."""

    def __init__(self, steps, after):
        self.steps, self.after = steps, after

    def __call__(self, step):
        after = self.after if callable(self.after) else lambda step: self.after
        rising = after(0) * ops.cast(step + 1, "float32") / self.steps
        return ops.where(step < self.steps, rising, after(ops.maximum(step - self.steps, 0)))


def learning_rate(config, steps):
    """The learning rate of a run with `steps` steps per epoch: a number, or a schedule over steps.

    cosine falls from lr to the final value over the whole training (Loshchilov & Hutter 2017, eq. 5). cosine_restarts
    does so over one seventh of it, then over two sevenths, then over four. step falls to the final value in two equal
    factors, after half and three quarters of the training. burda is lr 10^(-i/7) for 3^i epochs, i = 0 to 7, and stays
    there (Burda et al. 2016, section 5). quarter is a quarter of what it was after 10, 20 and 30 epochs (Thin et al.
    2021, their code). The warm-up comes first, and its epochs count.
    """
    final, warmup = config.lr_final or FINAL * config.lr, config.lr_warmup * steps
    total, alpha = max(1, config.epochs * steps - warmup), final / config.lr
    # the last steps of stages
    falls = [max(0, round(part * total) - 1) for part in (0.5, 0.75)]
    ends = [end * steps - 1 for end in itertools.accumulate(3**i for i in range(7))]
    rate = {
        "cosine": schedules.CosineDecay(config.lr, total, alpha=alpha),
        "cosine_restarts": schedules.CosineDecayRestarts(config.lr, max(1, math.ceil(total / 7)), t_mul=2, alpha=alpha),
        "step": schedules.PiecewiseConstantDecay(falls, [config.lr, (config.lr * final) ** 0.5, final]),
        "burda": schedules.PiecewiseConstantDecay(ends, [config.lr * 10 ** (-i / 7) for i in range(8)]),
        "quarter": schedules.PiecewiseConstantDecay(
            [10 * i * steps - 1 for i in (1, 2, 3)], [config.lr / 4**i for i in range(4)]
        ),
    }.get(config.lr_schedule, config.lr)
    return WarmUp(warmup, rate) if warmup else rate


def optimizer(config, steps, model):
    """The optimizer of a run with `steps` steps per epoch; with `ema` it keeps a moving average of the weights.

    With `accumulate` N, gradients add up, and every N-th step is an update by their mean; gradients that are left at
    the end of an epoch count in the next one. The learning rate is a function of steps, so N does not change when it
    falls. Keras averages weights after every step, so the N-th root of `ema` gives the same average per update. In
    float16 a LossScaleOptimizer wraps it, which scales the loss and skips steps whose gradients overflow. Only kernels
    of networks decay: biases, and weights of the prior and the objective, would be pulled to 0, which means black
    pixels for pseudo-inputs. With adamw they do by its own rule (Loshchilov & Hutter 2019), else by an L2 term in the
    gradient.
    """
    options = {"global_clipnorm": config.clip_norm}
    if config.ema:
        options |= {"use_ema": True, "ema_momentum": config.ema ** (1 / config.accumulate)}
    if config.epsilon:
        options["epsilon"] = config.epsilon
    if config.accumulate > 1:
        options["gradient_accumulation_steps"] = config.accumulate
    own = {id(weight) for weight in model.top_prior.trainable_weights}
    spared = [one for one in model.trainable_variables if one.name != "kernel" or id(one) in own]
    kind, decay = OPTIMIZERS[config.optimizer], config.weight_decay
    if decay is not None and config.optimizer == "adamw":
        options, decay = options | {"weight_decay": decay}, None
    if config.skip_norm or decay or config.pretrain_prior or config.diagnostics == "on":
        guarded = type(kind.__name__, (Guarded, kind), {})(learning_rate(config, steps), **options)
        decaying = {id(one) for one in model.trainable_variables} - {id(one) for one in spared}
        first = {id(one) for one in model.weights_of_u} if config.pretrain_prior else ()
        skip = config.skip_norm or math.inf
        chosen = guarded.guard(skip, decay or 0.0, decaying, config.pretrain_prior * steps, first)
    else:
        chosen = kind(learning_rate(config, steps), **options)
    chosen.finalize_variable_values = lambda variables: None  # else `fit` ends with the averages as weights
    chosen.exclude_from_weight_decay(var_list=spared)
    if models.PRECISIONS[config.precision].scales_loss:  # Keras scales by the model's own precision, which is float32
        return keras.optimizers.LossScaleOptimizer(chosen)
    return chosen
