"""What a run says on stderr about itself: when it starts, and when it is finished."""

import contextlib
import sys

import models
from experiment import own
from experiment.flags import next_commands
from runtime.text import duration

BINARIZED = {"dynamic": "binarized anew in each step", "threshold": "cut at 0.5", "none": "not binarized"}


def say(*lines):
    """Prints lines to stderr; where nobody can read them, training goes on."""
    with contextlib.suppress(OSError):
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def opening(config, path, dataset, counts, sizes, parts):
    """Three lines on a run in `path` that starts: its data, with the number of images of each split, model and folder.

    `counts` are those of the splits that training reads; that of the test split is what its source states. `sizes` are
    the latent dimensions of each layer, `parts` the numbers of weights by part.
    """
    if dataset.source.num_images and not dataset.is_other:
        counts = counts | {"test": dataset.source.num_images["test"]}
    images = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    shape, binarized = "x".join(map(str, dataset.image_shape)), BINARIZED[config.binarization]
    prior = f"{config.prior} prior, " * (config.has("prior") and (config.prior != "standard" or not config.is_deep))
    if config.has("prior") and models.PRIORS[config.prior].has_components:
        prior = f"{config.prior} prior of {config.num_pseudo_inputs:,} components, "
    weights = f"{sum(parts.values()):,} weights ({', '.join(f'{name} {count:,}' for name, count in parts.items())})"
    dimensions = " + ".join(f"{size:,}" for size in (sizes if len(sizes) < 9 else [sum(sizes)]))
    layers = f"{len(sizes)} latent layer{'s' * (len(sizes) > 1)} of {dimensions} dimensions"
    read = dataset.about or f"{config.data_set}, {images} images of {shape}"
    is_other_count = config.max_train_images or config.validation == "none"
    used = f"; trained on {counts['training']:,} images" * bool(dataset.about and is_other_count)
    yield f"data: {read}{used}; {binarized}, {config.observation} likelihood"
    kept = f" to fit; q(z|x) and p(x|z) are those of {config.refit.rpartition('@')[0]}" if config.refit else ""
    yield f"model: {config.model}, {layers}, {prior}{weights}{kept}"
    yield f"folder: {path}"


def closing(run):
    """Lines on a finished Run: its best epoch and its time, and the commands that come next, to be pasted."""
    status, note = run.status, f"; {run.status['note']}" if run.status.get("note") else ""
    best = f"weights of the last epoch ({run.config.monitor} {run.history[run.config.monitor][-1]:.2f} nats), "
    if "best_val_elbo" in status:
        best = f"best validation ELBO: {status['best_val_elbo']:.2f} nats, in epoch "
    best += f"{status['best_epoch']} of "
    yield f"{best}{status['epochs_done']}; {duration(status['seconds'])} of training{note}"
    if not run.config.gs_key:  # otherwise its grid says so
        yield from next_commands(str(run.path), *own.words_for(run.config))
