"""How one run is trained, or goes on: batches in an order fixed by the seed, its state, and Keras' `fit`."""

import contextlib
import dataclasses
import math
import os
import shutil
import sys
from types import SimpleNamespace
from typing import NamedTuple

import keras
import numpy as np

import atomic
import checkpoint
import data
import distribution
import engine
import experiment
import models
import optimizers
import tracking
from callbacks import (
    Averaged,
    EpochState,
    Memory,
    Patience,
    Plateau,
    Progress,
    RunWriter,
    StopOnNonFinite,
    StopOnRequest,
    Tracked,
    smaller,
)
from errors import RunError, UserError

VALIDATION_BATCH = 500
AHEAD = 2  # batches that TensorFlow reads before they are needed
CONTEXT_IMAGES, CONTEXT_BATCH = 50_000, 1000  # whose frequencies a context is scaled by, and of these at once
JIT = {"auto": "auto", "on": True, "off": False}  # Keras' own "auto" is off on TensorFlow's CPU and on elsewhere
COPIES = 4  # of the weights that training holds: they, their gradient and Adam's two moments


class Batches(keras.utils.PyDataset):
    """Batches of grey images (B, H, W, C) whose order is a pure function of (seed, epoch), on every backend.

    `steps` is their number in an epoch, of which the first `skip` are left out: training goes on behind them. Of each
    batch this process reads what the Spread says, and hands it on in its way.
    """

    error = None

    def __init__(self, split, config, spread=distribution.ALONE):
        super().__init__()
        self.split, self.config, self.spread, self.skip = split, config, spread, 0
        self.steps = math.ceil(len(split.images) / config.batch_size)
        self.start_epoch(0)

    def start_epoch(self, epoch):
        """Draws the order of this epoch."""
        rng = np.random.default_rng(self.config.stream("order", epoch))
        self.order = rng.permutation(len(self.split.images))

    def __len__(self):
        return self.steps - self.skip

    @property
    def left(self):
        """The numbers of the images in what is left of the epoch, batch after batch."""
        return self.order[self.skip * self.config.batch_size :]

    def done(self, batch):
        """Steps of the epoch that are done when Keras says that this batch of a `fit` has ended.

        With several steps in an execution it names the last one of the next full execution, even behind the end.
        """
        return min(self.skip + batch + 1, self.steps)

    def __getitem__(self, index):
        chosen = self.left[index * self.config.batch_size :][: self.config.batch_size]
        with keeping_errors(self):
            return (self.spread.placed(self.split.grey(chosen[slice(*self.spread.bounds(len(chosen)))]), len(chosen)),)


class InOrder(keras.utils.PyDataset):
    """Batches of images (N, H, W, C) in their order: of an array, or of a data.Grey, which is read as it is needed.

    Of each batch this process reads what the Spread says, and hands it on in its way.
    """

    error = None

    def __init__(self, images, batch_size, spread=distribution.ALONE):
        super().__init__()
        self.images, self.batch_size, self.spread = images, batch_size, spread

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __getitem__(self, index):
        start = self.batch_size * index
        n = min(self.batch_size, len(self.images) - start)
        first, end = self.spread.bounds(n)
        with keeping_errors(self):
            return (self.spread.placed(self.images[start + first : start + end], n),)


def fed(batches):
    """What `fit` is given for a PyDataset of batches (images,): itself; on TensorFlow a tf.data.Dataset, not tuned.

    The thread that tunes Keras' own dataset sleeps through its end now and then, and the next epoch waits until it
    wakes: after 11 seconds of steps for 9 to 16 more.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    is_in_memory = isinstance(batches, Batches) and isinstance(batches.split.images, np.ndarray)
    by_tensorflow = is_in_memory and batches.spread is distribution.ALONE
    dataset = _made_by_tensorflow(batches) if by_tensorflow else _made_by_python(batches)
    dataset = dataset.prefetch(AHEAD).with_options(options)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))


def _made_by_python(batches):
    import tensorflow as tf

    def each():
        return (batches[index] for index in range(len(batches)))

    (images,) = batches[0]
    signature = (tf.TensorSpec((None, *images.shape[1:]), images.dtype),)
    return tf.data.Dataset.from_generator(each, output_signature=signature)


def _made_by_tensorflow(batches):
    """The same Batches, of images in memory. Python is called once an epoch; between short steps it is in their way."""
    import tensorflow as tf

    max_value, size = batches.split.max_value, batches.config.batch_size
    with tf.device("CPU:0"):  # where datasets are made
        images = tf.constant(batches.split.images)

    def each(order):
        def grey(start):
            return (tf.cast(tf.gather(images, order[start : start + size]), "float32") / max_value,)

        return tf.data.Dataset.range(0, tf.size(order, "int64"), size).map(grey)

    epochs = tf.data.Dataset.from_generator(lambda: [batches.left], output_signature=tf.TensorSpec((None,), "int64"))
    return epochs.flat_map(each)


@contextlib.contextmanager
def keeping_errors(batches):
    """Keeps a DataError of the block as `batches.error`: TensorFlow, which asks for batches, makes another of it."""
    try:
        yield
    except data.DataError as error:
        batches.error = error
        raise


@contextlib.contextmanager
def saying_errors(*every):
    """Raises RunError where one of these batches could not be read in the block, whatever that raised."""
    try:
        yield
    except Exception as error:
        if kept := [batches.error for batches in every if batches.error]:
            raise RunError(str(kept[0])) from error
        raise


class Prepared(NamedTuple):
    """What a run is trained with; `model` is compiled and untrained, and lies on the devices of `batches.spread`."""

    dataset: data.Dataset
    batches: Batches
    validation: InOrder
    model: keras.Model


def prepare(config):
    """What the run is trained with, all checked before anything is written.

    Raises UserError or DataError for what cannot be trained.
    """
    tracking.check(config.track)
    keras.utils.clear_session()  # the last run of a grid is not needed any longer
    spread = distribution.spread(config)
    spread.begin(config)
    dataset = data.load(config.data_set, config.data_dir)
    split = dataset.split("train")
    _check_enough(split, "max_train_images", config.max_train_images or 0)
    split = split.first(config.max_train_images)
    _check_enough(split, "batch_size", config.batch_size)
    from_data = config.has_pseudo_inputs and config.pseudo_init == "data"
    _check_enough(split, "num_pseudo_inputs", config.num_pseudo_inputs if from_data else 0)
    if config.binarization == "threshold":
        split = split.thresholded()
    batches = Batches(split, config, spread)
    if config.accumulate > (steps := config.epochs * batches.steps):
        raise UserError(f"--accumulate {config.accumulate} is more than the {steps} steps there are; make it smaller")
    try:
        _check_weights(config, dataset.image_shape)
        with spread.saying_losses(), spread.scope():
            model = _compiled(config, batches, dataset)
    except Exception as error:
        if engine.is_out_of_memory(error):
            raise UserError(f"out of memory before the first step; {smaller(config, with_batch=False)}") from error
        if isinstance(error, ValueError):
            raise UserError(str(error)) from error
        raise
    _check_step(config, model)
    validation = InOrder(data.held_out(dataset, "val", config.binarization), validation_batch(config), spread)
    return Prepared(dataset, batches, validation, model)


def _compiled(config, batches, dataset):
    from_data = None
    if config.has_pseudo_inputs:
        from_data = _first_pseudo_inputs(config, dataset.source, batches.split)
    if config.has("context_size"):
        from_data = _context_scale(config, batches.split)
    engine.seed(config.seed)
    model = models.build(config, dataset.image_shape, config.binarization == "dynamic", from_data)
    model.compile(
        batches.spread.optimizer(optimizers.optimizer(config, batches.steps, model)),
        jit_compile=batches.spread.jit(JIT[config.jit]),
        steps_per_execution=config.steps_per_execution or batches.spread.steps_at_once(config),
    )
    batches.spread.ready(model)
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the step twice, to create these variables
    return model


def _first_pseudo_inputs(config, source, split):
    """(K, H, W, C) in [0, 1]: training images, or pixels from a Normal that is the data set's own."""
    rng = np.random.default_rng(config.stream("pseudo-inputs"))
    if config.pseudo_init == "data":
        return split.grey(rng.choice(len(split.images), config.num_pseudo_inputs, replace=False))
    pixels = rng.normal(*source.pseudo_pixels, (config.num_pseudo_inputs, *split.images.shape[1:]))
    return np.clip(pixels, 0, 1).astype(np.float32)


def _context_scale(config, split):
    """The `context_scale` of training images, binarized once where each step binarizes them."""
    from models.dvp import context_scale

    binarize, rng = config.binarization, np.random.default_rng(config.stream("context"))
    largest = 0
    for start in range(0, min(len(split.images), CONTEXT_IMAGES), CONTEXT_BATCH):
        grey = split.grey(slice(start, start + CONTEXT_BATCH))
        largest = np.maximum(largest, context_scale(data.binarized(grey, binarize, rng), config.context_size))
    return largest


def _check_enough(split, name, wanted):
    if wanted > len(split.images):
        raise UserError(f"--{name} {wanted} is more than the {len(split.images)} training images; make it smaller")


def _check_weights(config, image_shape):
    """Raises UserError where the weights and what training adds to them cannot fit, before they are made."""
    copies = COPIES + (config.accumulate > 1)
    needed = copies * 4 * sum(math.prod(one.shape) for one in models.blank_weights(config, image_shape).values())
    if needed > (there := engine.memory()):
        raise UserError(
            f"weights and optimizer alone need {needed / 2**30:.0f} GiB, this machine has {there / 2**30:.0f}; "
            f"{smaller(config, with_batch=False)}"
        )


def _check_step(config, model):
    """Raises UserError where a step cannot fit: on most machines its process would be killed without a word.

    The estimate leans to the low side: what a decoder computes and, in training, its gradient, for each pass through a
    network.
    """
    pseudo_inputs = config.num_pseudo_inputs if config.has_pseudo_inputs else 0
    kept = model.decoder.floats_per_sample  # for the gradient; without one, a deep decoder holds on to one layer only
    at_once = getattr(model.decoder, "floats_at_once", kept)
    steps = {
        "training": 2 * ((1 + config.decodings) * config.batch_size + pseudo_inputs) * kept,
        "validation": (2 * VALIDATION_BATCH + pseudo_inputs) * at_once,
    }
    kind = max(steps, key=steps.get)
    needed = models.PRECISIONS[config.precision].bytes * steps[kind]
    if needed > (there := engine.memory()):
        sizes = f"{needed / 2**30:.0f} GiB, this machine has {there / 2**30:.0f}"
        raise UserError(f"a {kind} step needs some {sizes}; {smaller(config, with_batch=kind == 'training')}")


def judges(config):
    """Keras' callbacks that judge the validation value of the trained bound: those that the settings ask for.

    Epochs of the warm-up of beta may be the best ones, but are not counted as ones without a better value: what is
    trained there is another bound.
    """
    chosen = []
    if config.patience:
        chosen.append(Patience(config.beta_warmup, config.judged, mode="max", patience=config.patience))
    if config.lr_schedule == "plateau":
        final = config.lr_final or optimizers.FINAL * config.lr
        options = {"mode": "max", "factor": 0.5, "patience": 10, "min_lr": final}
        chosen.append(Plateau(config.beta_warmup, config.judged, **options))
    return chosen


def patience_is_over(config, rows):
    """Whether a training with this history would have stopped."""
    model = SimpleNamespace(stop_training=False, optimizer=SimpleNamespace(learning_rate=np.array(config.lr)))
    called = judges(config)
    for callback in [*called, Memory(called, rows)]:
        callback.set_model(model)
        callback.on_train_begin()
    return model.stop_training


def train(config, overwrite=False, source=None):
    """Trains a new run to its end, from the state of the Run `source` if there is one, and returns its folder.

    Raises UserError or DataError before anything is written; RunError where a term stopped being a number, memory was
    too small or the folder could no longer be written; KeyboardInterrupt on Ctrl-C. `resume` then goes on.
    """
    if source and config.is_made_for_its_epochs and config.epochs != source.config.epochs:
        raise UserError(f"{source.path} has a learning rate that falls over its {source.config.epochs} epochs: "
                        "it cannot be trained longer")  # fmt: skip
    prepared = prepare(config)
    state = None
    if source:
        _check_same(source, prepared.dataset)
        state = _newest_state(source, config, prepared)
        if state is None:
            raise UserError(f"{source.path} has no state in {source.path / 'last'} to go on from")
    keep = (lambda folder: checkpoint.save(folder / "last", state)) if state else None
    experiment.create(config, config.path, prepared.dataset, overwrite, keep)
    with experiment.held(config.path):
        _fit(config, config.path, prepared, state)
    return config.path


def resume(run, config):
    """Goes on with an unfinished Run from its newest state that is whole, and returns its folder.

    `config` is the run's own, but for where things lie. The history is that of a run that was never interrupted.
    Raises as `train` does, and UserError where the run cannot go on or another process trains it.
    """
    experiment.finish_replacing(run.path)
    with experiment.held(run.path):
        prepared = prepare(config)
        _check_same(run, prepared.dataset)
        state = _newest_state(run, config, prepared, mend=True)
        if state is None and run.weights.is_file():
            raise UserError(
                f"{run.path} has epochs, but no state to go on from; its command with --overwrite starts it again"
            )
        _fit(config, run.path, prepared, state)
    return run.path


def follow(config):
    """Trains what another process leads in, which alone writes the run's folder. Raises as `train` does."""
    config = dataclasses.replace(config, track="none")
    _fit(config, None, prepare(config), None)


def _check_same(run, dataset):
    """Raises UserError unless backend and data are those that the run began with; warns of other versions."""
    if run.backend != keras.backend.backend():
        raise UserError(f"{run.path} was trained on {run.backend}; go on with --backend {run.backend}")
    run.check_data(dataset)
    now, then = experiment.versions(), run.record["versions"]
    if changed := [f"{name} {then.get(name)} is now {now[name]}" for name in now if now[name] != then.get(name)]:
        print(f"warning: {run.path}: {', '.join(changed)}; last digits may differ", file=sys.stderr)


def _newest_state(run, config, prepared, mend=False):
    """The newest State of a run that is whole, with a warning for each that is not; None if there never was one.

    With `mend` the damaged ones are taken out of the way, else each would count as one of the newest two.
    """
    error, damaged = None, []
    for path in checkpoint.newest(run.path / "last"):
        try:
            state = checkpoint.read(path, prepared.model)
            if state.step >= prepared.batches.steps or (state.rows and tuple(state.rows[0]) != config.columns):
                raise checkpoint.Damaged("it belongs to another version or another run")
        except checkpoint.Damaged as damage:
            error = damage
            damaged.append(path)
            print(f"warning: {path} is damaged ({damage}); looking at the one before", file=sys.stderr)
            continue
        except OSError as trouble:
            if not os.path.lexists(path):  # the run is being trained, and has newer ones by now
                return _newest_state(run, config, prepared, mend)
            raise UserError(f"{path} cannot be read: {trouble.strerror}; mend that, and try again") from trouble
        if state.epoch + bool(state.step) > config.epochs:
            raise UserError(f"{run.path} has been trained for {state.epoch} epochs already; --epochs must be more")
        if mend:
            for one in damaged:
                checkpoint.discard(one)
        return state
    if error:
        raise UserError(
            f"{run.path / 'last'} holds no state that is whole ({error}); its command with --overwrite starts it again"
        )
    return None


def validation_batch(config):
    """Images in a validation step, fewer where each of them has several samples."""
    return max(1, VALIDATION_BATCH // config.samples)


def _fit(config, path, prepared, state):
    """Trains from this State, or the beginning if it is None, to the end; writes the run's folder, if it has one."""
    batches, model, spread = prepared.batches, prepared.model, prepared.batches.spread
    with spread.saying_losses():
        state = spread.shared(state, model, prepared.dataset)
    averaged = [Averaged()] if config.ema else []
    instead = averaged[0].instead if averaged else contextlib.nullcontext
    writer = RunWriter(path, config, batches, state, config.note_on(prepared.dataset.sha256), instead)
    epoch = 0
    if state:
        with spread.saying_losses():
            state.into(model)
        batches.skip, epoch = state.step, state.epoch
    shown = []
    if spread.leads:
        shown = [Tracked(writer, prepared.validation.images, spread)]
        shown.append(Progress(config, batches, len(prepared.validation), epoch))
    judging = judges(config)
    memory = Memory(judging, writer.rows, config.lr if config.lr_schedule == "plateau" else None)
    state_of_epoch, finite = EpochState(config, batches, state), StopOnNonFinite(batches)
    readable = saying_errors(batches, prepared.validation)
    surroundings = (StopOnRequest(writer, spread), engine.forgetting_graphs(), *shown[:1], writer.status_of_ending(),
                    *shown[1:], readable, spread.saying_losses(), spread.scope())  # fmt: skip
    with contextlib.ExitStack() as stack:
        request, *_ = map(stack.enter_context, surroundings)
        if path:
            atomic.sweep(path)
            atomic.sweep(path / "last", alone=True)
        writer.write_results()
        callbacks = [state_of_epoch, *averaged, finite, writer, *shown, *judging, memory, request]
        _fit_epochs(config, prepared, epoch, writer.rows, callbacks)
    if path:
        shutil.rmtree(path / "replaced", ignore_errors=True)
    with spread.saying_losses():
        has_to_stop = spread.agreed(request.asked)
    spread.done()
    if has_to_stop:  # when all was done but the ending: a grid must not go on
        raise KeyboardInterrupt


def _fit_epochs(config, prepared, epoch, rows, callbacks):
    """Keras' `fit` from this epoch on, or from within it, to the last; `rows` grow by one with each."""
    batches = prepared.batches
    while epoch < config.epochs and not patience_is_over(config, rows):
        prepared.model.fit(
            fed(batches),
            initial_epoch=epoch,
            epochs=epoch + 1 if batches.skip else config.epochs,  # the rest of one epoch, then all others
            shuffle=False,  # the order is Batches' own
            validation_data=fed(prepared.validation),
            callbacks=callbacks,
            verbose=0,
        )
        batches.skip, epoch = 0, len(rows)
