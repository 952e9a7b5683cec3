"""Optimizers and learning rates by the settings of a run: Keras' own, and the one that the VampPrior paper made."""

import math

import keras
from keras import ops
from keras.optimizers import schedules

import models

STEPS = (0.5, 0.75)  # parts of the training after which the learning rate of `step` falls
FINAL = 0.01  # of the learning rate, where no --lr_final is given


class Fused:
    """Makes an Adam of Keras update each weight and its moments by one operation of TensorFlow, instead of fifteen.

    It is the same rule (Kingma & Ba 2015, section 2, with its more efficient order), in one pass over memory.
    """

    def update_step(self, gradient, variable, learning_rate):
        """One update of a variable, which is TensorFlow's where that is the backend."""
        if keras.backend.backend() != "tensorflow" or self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        index, dtype = self._get_variable_index(variable), variable.dtype
        step = tf.cast(self.iterations + 1, dtype)
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.cast(self.beta_1, dtype) ** step,
            beta2_power=tf.cast(self.beta_2, dtype) ** step,
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )


class Adam(Fused, keras.optimizers.Adam):
    """Keras' Adam, fused."""


class AdamW(Fused, keras.optimizers.AdamW):
    """Keras' AdamW, fused."""


class AdamNormGrad(Adam):
    """Adam on gradients that are divided by their L2 norm, each tensor by its own (Tomczak & Welling 2018, code)."""

    def _clip_gradients(self, grads):
        """Each gradient g as g / ||g||, and then clipped: whole ones, of weights that have one."""
        # not ops.norm, which on TensorFlow takes vectors and matrices only
        return super()._clip_gradients([g / (ops.sqrt(ops.sum(ops.square(g))) + 1e-12) for g in grads])


OPTIMIZERS = {
    "adam": Adam,
    "adamax": keras.optimizers.Adamax,
    "adamw": AdamW,
    "adamnormgrad": AdamNormGrad,
}


class WarmUp(schedules.LearningRateSchedule):
    """A learning rate that rises in a line from 0 over so many steps, and then is `after`, a number or a schedule."""

    def __init__(self, steps, after):
        self.steps, self.after = steps, after

    def __call__(self, step):
        """The learning rate of a step."""
        later = self.after(ops.maximum(step - self.steps, 0)) if callable(self.after) else self.after
        first = self.after(0) if callable(self.after) else self.after
        return ops.where(step < self.steps, first * ops.cast(step + 1, "float32") / self.steps, later)

    def get_config(self):
        """The arguments."""
        return {"steps": self.steps, "after": self.after}


def learning_rate(config, steps):
    """The learning rate of a run of `steps` steps an epoch: a number, or a schedule over steps.

    cosine: from lr to the final value over the whole training (Loshchilov & Hutter 2017, eq. 5); cosine_restarts: the
    same over a seventh of it, then again over two and four of them; step: down to the final value in two equal
    factors, after half and three quarters. The epochs of the warm-up come first and count.
    """
    final, warmup = config.lr_final or FINAL * config.lr, config.lr_warmup * steps
    total = max(1, config.epochs * steps - warmup)
    rate = {
        "constant": lambda: config.lr,
        "plateau": lambda: config.lr,
        "cosine": lambda: schedules.CosineDecay(config.lr, total, alpha=final / config.lr),
        "cosine_restarts": lambda: schedules.CosineDecayRestarts(
            config.lr, max(1, math.ceil(total / 7)), t_mul=2.0, alpha=final / config.lr
        ),
        "step": lambda: schedules.PiecewiseConstantDecay(
            [round(part * total) for part in STEPS], [config.lr, (config.lr * final) ** 0.5, final]
        ),
    }[config.lr_schedule]()
    return WarmUp(warmup, rate) if warmup else rate


def averages(optimizer):
    """The moving averages that it keeps, in the order of the weights."""
    return getattr(optimizer, "inner_optimizer", optimizer)._model_variables_moving_average


def optimizer(config, steps, model):
    """The optimizer of a run of `steps` steps an epoch; with `ema` it keeps a moving average of the weights.

    With `accumulate` N, gradients add up, and every N-th step is an update by their mean; what has added up is taken
    along into the next epoch. The learning rate is one of steps, and falls over the same epochs. Keras averages weights
    in each step, too: the N-th root of the momentum makes it what was asked for from one update to the next. In
    float16, this is another one's wrapper, which scales the loss, and leaves out steps that this makes overflow.
    What decays, with `adamw`, are the kernels of the networks: not their biases, and no weight of the prior or the
    objective, which it would pull to black pixels, or together.
    """
    options = {"global_clipnorm": config.clip_norm}
    if config.ema:
        options |= {"use_ema": True, "ema_momentum": config.ema ** (1 / config.accumulate)}
    if config.accumulate > 1:
        options["gradient_accumulation_steps"] = config.accumulate
    chosen = OPTIMIZERS[config.optimizer](learning_rate(config, steps), **options)
    chosen.finalize_variable_values = lambda variables: None  # `fit` would end with the average in the weights' place
    own = {id(weight) for weight in model.top_prior.trainable_weights}
    spared = [one for one in model.trainable_variables if one.name != "kernel" or id(one) in own]
    chosen.exclude_from_weight_decay(var_list=spared)
    if models.PRECISIONS[config.precision].scales_loss:  # Keras looks at the model's precision alone, which is float32
        return keras.optimizers.LossScaleOptimizer(chosen)
    return chosen
