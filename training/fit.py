"""How one run is trained: `train` a new one, `resume` it, or `follow` the process that does."""

import contextlib
import dataclasses
import os
import shutil
import sys
from functools import partial
from typing import NamedTuple

import keras
import numpy as np

import data
import experiment
import models
from experiment import tracking, weights
from experiment.folder import finish_replacing
from experiment.record import versions
from models.dvp import context_scale
from models.weight_names import named_weights, weights_by_part
from runtime import atomic, backend
from runtime.command import stoppable
from runtime.errors import UserError
from runtime.memory import is_out_of_memory
from training import checkpoint, devices, messages, optimizers, processes
from training.batches import Batches, InOrder, as_tf_dataset, reporting_unreadable, validation_batch
from training.callbacks import EMAWeights, EpochState, RefreshedPrior, StopOnNonFinite, Watch
from training.ctrl_c import StopOnRequest
from training.memory import check_step, check_weights, smaller
from training.patience import monitors, patience_is_over
from training.progress import Progress
from training.tracked import COPIES, Tracked
from training.watched import WatchedLogPx
from training.writer import RunWriter

MOST_READ, READ_AT_ONCE = 50_000, 1000  # training images that scale a context or tell their mean; images at once
MANY = 8  # steps in an execution where they are short; a request to stop is still heard soon
JIT = {"auto": "auto", "on": True, "off": False}  # Keras' "auto" is off on TensorFlow's CPU and on elsewhere


def train(config, overwrite=False, source=None):
    """Trains a new run to its end, starting from the state of the Run `source` if given, and returns its folder.

    If `config` refits the prior of `source`, it starts from the weights of that, with a prior of its own.
    Raises UserError or DataError before anything is written. Raises RunError if a term is not finite, memory is too
    small or the folder can no longer be written, and KeyboardInterrupt after Ctrl-C; `resume` then continues the run.
    """
    is_refit = source is not None and config.refit != source.config.refit
    if source and not is_refit and config.is_made_for_its_epochs and config.epochs != (before := source.config.epochs):
        falls = f"has a learning rate that falls over its {before} epochs"
        raise UserError(f"{source.path} {falls}: it cannot be trained longer")
    dataset = _load(config)
    if config.is_folder and not source:
        dataset.split("train")
        config = dataclasses.replace(config, auto_likelihood=dataset.likelihood)  # so that it never changes
    prepared = prepare(config, dataset)
    state = None
    if is_refit:
        source.check_data(prepared.dataset)
        state = _with_weights_of(source, prepared.model)
    elif source:
        _check_same(source, prepared.dataset)
        state = _newest_state(source, config, prepared)
        if state is None:
            raise UserError(f"{source.path} has no state in {source.path / 'last'} to start from")
    elif config.init_from:
        state = _with_weights_named(config, prepared.model)
    kept = source.snapshots if source and not is_refit else {}
    fill = (lambda folder: _keep(folder, kept, state)) if state else None
    experiment.create(config, config.path, prepared.dataset, overwrite, fill)
    with experiment.held(config.path):
        _fit(config, config.path, prepared, state)
    return config.path


def _keep(folder, snapshots, state):
    """Writes into the new folder of a run the State from which it goes on, and the snapshots that were kept before."""
    checkpoint.save(folder / "last", state)
    for path in snapshots.values():
        (folder / "snapshots").mkdir(exist_ok=True)
        shutil.copyfile(path, folder / "snapshots" / path.name)


def resume(run, config):
    """Continues an unfinished Run from its newest undamaged state, and returns its folder.

    `config` is the run's own, except for paths and devices. The history is that of a run that was never interrupted.
    Raises as `train` does, and UserError if the run cannot be continued or another process trains it.
    """
    finish_replacing(run.path)
    with experiment.held(run.path):
        prepared = prepare(config)
        _check_same(run, prepared.dataset)
        state = _newest_state(run, config, prepared, mend=True)
        if state is None and run.weights.is_file():
            again = "its command with --overwrite starts it again"
            raise UserError(f"{run.path} has epochs, but no state to resume from; {again}")
        _warn_of_past_snapshots(config, run, state.epoch if state else 0)
        atomic.sweep(run.path)
        for name in ("last", "snapshots"):
            atomic.sweep(run.path / name, alone=True)
        _fit(config, run.path, prepared, state)
    return run.path


def follow(config):
    """Trains the run that the first process trains; only that one writes its folder. Raises as `train` does."""
    config = dataclasses.replace(config, track="none")
    _fit(config, None, prepare(config), None)


def _fit(config, path, prepared, state):
    """Trains from this State, or the beginning, to the end; without a `path`, as one that follows, writes nothing."""
    dataset, batches, validation, model = prepared
    placement = batches.placement
    with processes.reporting_losses():
        if state := _shared(state, model, dataset):
            state.into(model)
    epoch, batches.skip = (state.epoch, state.step) if state else (0, 0)
    ema = EMAWeights() if config.ema else None
    parts, instead = weights_by_part(model), ema.instead if ema else contextlib.nullcontext
    writer = RunWriter(path, config, batches, state, config.note_on(dataset.note), instead, parts)
    stop, shows = StopOnRequest(writer), processes.leads()
    tracked = Tracked(writer, prepared.shown, placement) if shows else None
    progress = Progress(config, batches, len(validation or ()), epoch) if shows else None
    callbacks = _callbacks(config, prepared, state, ema, writer, tracked, progress, stop)
    if shows:  # before there is a bar, whose line this would end
        messages.say(*messages.opening(config, path, dataset, prepared.counts, model.sizes, parts))
    with (
        stoppable(stop.ask),  # outermost, so that no signal interrupts what the others write in the end
        tracked or contextlib.nullcontext(),
        writer.status_of_ending(),
        progress or contextlib.nullcontext(),
        reporting_unreadable(*filter(None, (batches, validation))),
        processes.reporting_losses(),
        placement.scope(),
    ):
        writer.write_results()
        while epoch < config.epochs and not patience_is_over(config, writer.rows):
            end = epoch + 1 if batches.skip else config.epochs  # the rest of one epoch, then all others
            images, held_out = as_tf_dataset(batches), validation and as_tf_dataset(validation)
            options = {"shuffle": False, "callbacks": callbacks, "verbose": 0}  # Batches has its own order
            model.fit(images, validation_data=held_out, initial_epoch=epoch, epochs=end, **options)
            batches.skip, epoch = 0, len(writer.rows)
    if path:
        shutil.rmtree(path / "replaced", ignore_errors=True)
    with processes.reporting_losses():
        any_asked = processes.any_of(stop.asked)
    processes.done()
    if any_asked:  # after the last step: the run is finished, but a grid must not continue
        raise KeyboardInterrupt


def _warn_of_past_snapshots(config, run, epochs):
    """Says which of --snapshot_epochs are over, and were not kept."""
    asked = {epoch for epoch in config.snapshot_epochs or () if epoch <= epochs}
    if late := sorted(asked - set(run.snapshots)):
        said = f"epochs {', '.join(map(str, late))} are over, and their weights were not kept"
        print(f"warning: --snapshot_epochs: {said}", file=sys.stderr)


def _callbacks(config, prepared, state, ema, writer, tracked, progress, stop):
    """Those of `fit`, in the order in which Keras calls them; None is left out."""
    _, batches, validation, model = prepared
    ordered = [
        EpochState(config, batches, state),  # first: the order, the noise and beta of an epoch
        ema,  # before the others see validation
        Watch(config, batches, validation, writer.instead) if config.watched else None,
        _refreshed(model, batches, ema, None if validation else writer.instead),
        StopOnNonFinite(config, batches),  # before the writer, so that no NaN is stored
        WatchedLogPx(config, validation.images, writer) if config.watch_log_px else None,  # before the writer, too
        writer,  # before those that read its rows
        tracked,
        progress,
        *monitors(config, writer.rows),
        stop,  # last, so that the epoch is written before it raises
    ]
    return [callback for callback in ordered if callback]


def _refreshed(model, batches, ema, instead):
    """A callback for a prior that has something to refresh, else None."""
    refresh = getattr(model.top_prior, "renormalise", None)
    if batches.exemplars:
        refresh = partial(model.top_prior.refresh, batches.split.grey)
    return refresh and RefreshedPrior(refresh, batches, bool(ema), instead)


def _shared(state, model, dataset):
    """The first process's State or None, for every process; each has made the same model before.

    Raises UserError if the data of this process differ from those of the first one.
    """
    progress = state and {name: getattr(state, name) for name in (*checkpoint.PROGRESS, "rows")}
    first = processes.order({"data": dataset.sha256, "state": progress})
    if first["data"] != dataset.sha256:
        raise UserError("the data files of this process differ from those of the first one; check its --data_dir")
    if first["state"] is None:
        return None
    own = state.values if state else weights.values(checkpoint.variables(model))
    values = {name: np.asarray(value) for name, value in processes.broadcast(own).items()}
    return state or checkpoint.State(**first["state"], best={}, values=values)


class Prepared(NamedTuple):
    """What a run is trained with; `model` is compiled and untrained, on the devices of `batches.placement`."""

    dataset: data.Dataset
    batches: Batches
    validation: InOrder | None
    model: keras.Model

    @property
    def counts(self):
        """The number of images of each split that is read."""
        found = {"training": len(self.batches.split.images)}
        return found | ({"validation": len(self.validation.images)} if self.validation else {})

    @property
    def shown(self):
        """The images whose reconstructions trackers get: of validation or, where none are held out, of training."""
        if self.validation:
            return self.validation.images
        few = np.arange(min(COPIES, len(self.batches.split.images)))
        return data.held_out(self.dataset, "train", self.batches.config.binarization, few)


def _load(config):
    options = {"joined": config.validation == "none"}
    return data.load(config.data_set, config.data_dir, config.other_data == "on", config.image_size, **options)


def prepare(config, dataset=None):
    """What the run is trained with; nothing is written. Raises UserError or DataError if it cannot be trained."""
    tracking.check(config.track)
    keras.utils.clear_session()  # frees the graphs of a run that this process trained before
    placement = devices.Placement(config)
    processes.begin(config)
    dataset = dataset or _load(config)
    split = dataset.split("train")
    _check_enough(split, "max_train_images", config.max_train_images or 0)
    split = split.at(slice(config.max_train_images))
    _check_enough(split, "batch_size", config.batch_size)
    from_data = config.has_pseudo_inputs and config.pseudo_init == "data"
    _check_enough(split, "num_pseudo_inputs", config.num_pseudo_inputs if from_data else 0)
    _check_enough(split, "num_exemplars", config.num_exemplars if config.has("num_exemplars") else 0)
    if config.binarization == "threshold":
        split = split.thresholded()
    batches = Batches(split, config, placement)
    if config.accumulate > (steps := config.epochs * batches.steps):
        raise UserError(f"--accumulate {config.accumulate} is more than the {steps} steps there are; make it smaller")
    try:
        check_weights(config, dataset.image_shape, range(len(split.images)) if batches.exemplars else None)
        with processes.reporting_losses(), placement.scope():
            model = _compiled(config, batches, dataset)
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"out of memory before the first step; {smaller(config, with_batch=False)}") from error
        if isinstance(error, ValueError):
            raise UserError(str(error)) from error
        raise
    check_step(config, model)
    validation = None
    if "val" in config.splits:
        validation = InOrder(data.held_out(dataset, "val", config.binarization), validation_batch(config), placement)
    return Prepared(dataset, batches, validation, model)


def _compiled(config, batches, dataset):
    from_data = None
    if config.has_pseudo_inputs:
        from_data = _first_pseudo_inputs(config, dataset.source, batches.split)
    elif batches.exemplars:
        from_data = range(len(batches.split.images))
    elif config.has("context") and config.context == "cosine":
        from_data = _context_scale(config, batches.split)
    backend.seed(config.seed)  # which the first weights depend on
    model = models.build(config, dataset.image_shape, config.binarization == "dynamic", from_data)
    if said := models.check_own(config, model):
        print(f"warning: {said}", file=sys.stderr)
    is_short = models.NETWORKS[config.network].is_dense or backend.has_gpu()  # as the work between two executions
    at_once = config.steps_per_execution or (MANY if is_short and not batches.placement.is_distributed else 1)
    optimizer = optimizers.optimizer(config, batches.steps, model)
    if models.NETWORKS[config.network].starts_at_mean:
        model.decoder.start_at(_mean(batches.split))
    model.compile(optimizer, jit_compile=JIT[config.jit], steps_per_execution=at_once)
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the step twice to create these variables
    return model


def _with_weights_named(config, model):
    """The State before the first epoch that has the best weights of the run that --init_from names.

    Raises UserError where they do not fit the model.
    """
    run, named = experiment.load(config.init_from), named_weights(model)
    try:
        values = weights.read(run.weights, named)
        if run.weights_id != config.init_hash:
            raise ValueError(
                f"they are {run.weights_id} now, and were {config.init_hash} when this run was named after them"
            )
    except (OSError, ValueError) as error:
        raise UserError(f"--init_from {run.path}: its best weights do not fit this run: {error}") from error
    weights.assign(named, values)
    return _at_start(model)


def _first_pseudo_inputs(config, source, split):
    """(K, H, W, C) in [0, 1]: training images, or pixels from the data set's Normal."""
    rng = np.random.default_rng(config.stream("pseudo-inputs"))
    if config.pseudo_init == "data":
        return split.grey(rng.choice(len(split.images), config.num_pseudo_inputs, replace=False))
    pixels = rng.normal(*source.pseudo_pixels, (config.num_pseudo_inputs, *split.images.shape[1:]))
    return np.clip(pixels, 0, 1).astype(np.float32)


def _context_scale(config, split):
    """The `context_scale` of training images; with dynamic binarization, of one binarization of them."""
    binarize, rng, largest = config.binarization, np.random.default_rng(config.stream("context")), 0
    for grey in _in_parts(split):
        largest = np.maximum(largest, context_scale(data.binarized(grey, binarize, rng), config.context_size))
    return largest


def _mean(split):
    """The mean of training images: (H, W, C) in [0, 1], float64."""
    return sum(grey.sum(axis=0, dtype="float64") for grey in _in_parts(split)) / min(len(split.images), MOST_READ)


def _in_parts(split):
    """Yields grey training images, the first MOST_READ at most, READ_AT_ONCE at a time."""
    for start in range(0, min(len(split.images), MOST_READ), READ_AT_ONCE):
        yield split.grey(slice(start, min(start + READ_AT_ONCE, MOST_READ)))


def _check_enough(split, name, wanted):
    if wanted > len(split.images):
        raise UserError(f"--{name} {wanted} is more than the {len(split.images)} training images; make it smaller")


def _check_same(run, dataset):
    """Raises UserError if backend or data differ from those that the run began with; warns if versions differ."""
    if run.backend != keras.backend.backend():
        raise UserError(f"{run.path} was trained on {run.backend}; resume it with --backend {run.backend}")
    run.check_data(dataset)
    now, then = versions(), run.record["versions"]
    if changed := [f"{name} {then.get(name)} is now {now[name]}" for name in now if now[name] != then.get(name)]:
        print(f"warning: {run.path}: {', '.join(changed)}; last digits may differ", file=sys.stderr)


def _with_weights_of(source, model):
    """The State before the first epoch that has all weights of the Run `source` but its prior's, and these of `model`.

    Raises UserError where weights of `source` cannot be read.
    """
    own = {name: weight for name, weight in named_weights(model).items() if not name.startswith("prior/")}
    weights.assign(own, weights.values(named_weights(source.model)))
    return _at_start(model)


def _at_start(model):
    """The State before the first epoch of this model."""
    return checkpoint.State(0, 0, 0.0, [], {}, weights.values(checkpoint.variables(model)))


def _newest_state(run, config, prepared, mend=False):
    """The newest undamaged State of a run, with a warning for each damaged one; None if there never was a state.

    With `mend`, damaged ones are renamed, so that they do not count as one of the two newest. Raises UserError if all
    are damaged, one cannot be read, or the run has been trained for longer than `config` says.
    """
    error, damaged = None, []
    for path in checkpoint.newest(run.path / "last"):
        try:
            state = checkpoint.read(path, prepared.model, config.columns)
            if state.step >= prepared.batches.steps:
                raise checkpoint.Damaged("it belongs to another run")
        except checkpoint.Damaged as damage:
            error = damage
            damaged.append(path)
            print(f"warning: {path} is damaged ({damage}); trying the one before", file=sys.stderr)
            continue
        except OSError as trouble:
            if not os.path.lexists(path):  # another process trains the run, and has written newer ones
                return _newest_state(run, config, prepared, mend)
            raise UserError(f"{path} cannot be read: {trouble.strerror}; mend that, and try again") from trouble
        if state.epoch + bool(state.step) > config.epochs:
            raise UserError(f"{run.path} has been trained for {state.epoch} epochs already; --epochs must be more")
        if mend:
            for one in damaged:
                one.replace(one.with_suffix(".damaged"))  # where it counts as no state
        return state
    if error:
        again = "its command with --overwrite starts it again"
        raise UserError(f"{run.path / 'last'} holds no undamaged state ({error}); {again}")
    return None
