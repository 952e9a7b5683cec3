"""All private members of Keras that this project uses; tests/runtime/test_internals.py fails if Keras changes them."""

STATE = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")


def place(optimizer, variable):
    """The place, among the weights that an optimizer was built for, of one, or of its variable of the backend."""
    return optimizer._get_variable_index(variable)


def moments(optimizer, variable):
    """The first and the second moment that an Adam of Keras keeps of a weight: two Keras Variables."""
    index = place(optimizer, variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def averages(optimizer):
    """The moving averages that an optimizer with `use_ema` keeps, in the order of the weights: Keras Variables."""
    return getattr(optimizer, "inner_optimizer", optimizer)._model_variables_moving_average


def weights(optimizer):
    """The weights that an optimizer was built for, in the order of their gradients: Keras Variables."""
    return optimizer._trainable_variables[:]


def steps(optimizer):
    """How many steps an optimizer has taken, whether or not each was an update: a Keras Variable."""
    return optimizer._iterations


class ChangesGradients:
    """Lets an optimizer of Keras change gradients by its method `changed(grads)`.

    Gradients have been accumulated before, and are clipped afterwards.
    """

    def _clip_gradients(self, grads):
        return super()._clip_gradients(self.changed(grads))


def sublayers(layer):
    """A layer of Keras and all layers inside it."""
    return list(layer._flatten_layers())


def train_on_jax(model, batches):
    """Trains a step on each batch (x,) by the compiled function that `fit` calls on JAX, without what `fit` adds.

    Returns the last step's logs. The model must have been trained for a step on a batch of this size.
    """
    state = model._get_jax_state(**dict.fromkeys(STATE, True), purge_model_variables=True)
    for x in batches:
        logs, state = model.train_function(state, iter([(x, None, None)]))
    model._jax_state, model._jax_state_synced = dict(zip(STATE, state, strict=True)), False
    model.jax_state_sync()
    return logs
