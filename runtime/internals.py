"""Private members of Keras' optimizers, with tests that fail if Keras changes them: numbers depend on these members."""


def moments(optimizer, variable):
    """The first and the second moment that an Adam of Keras keeps of a weight: two Keras Variables."""
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def averages(optimizer):
    """The moving averages that an optimizer with `use_ema` keeps, in the order of the weights: Keras Variables."""
    return optimizer._model_variables_moving_average


class ChangesGradients:
    """Lets an optimizer of Keras change gradients by its method `changed(grads)`.

    Gradients have been accumulated before, and are clipped afterwards.
    """

    def _clip_gradients(self, grads):
        return super()._clip_gradients(self.changed(grads))
