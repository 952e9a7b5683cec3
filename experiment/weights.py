"""A weights file that somebody else may have written: looked at in a process of its own before Keras reads it.

The HDF5 library is written in C and was not made for hostile files: some make it loop, ask for memory without end, or
crash. Then it is the other process that does, and the file is refused. What Keras has read is looked at once more, for
weights that are no numbers.
"""

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from runtime import atomic

SECONDS = 60  # for looking at a file
MEMORY = 2**32  # bytes of address space for doing so, beside twice the file
MOST_ARRAYS = 5  # times the model's: each weight, what an optimizer keeps of it, and some to spare


def check(path, expected):
    """Raises ValueError or OSError unless `path` is a weights file with arrays of these shapes.

    An optimizer's state may be there too, of arrays no larger than the weights. Keras does not mind when arrays are
    left over, and finds out how large one is by reading it.
    """
    with atomic.opened(path):  # that it is there and may be read is known from here
        limit = MEMORY + 2 * Path(path).stat().st_size
    most = max((math.prod(shape) for shape in expected), default=1)
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "experiment.weights",
                str(path),
                str(limit),
                str(most),
                str(MOST_ARRAYS * len(expected)),
            ],
            capture_output=True,
            cwd=Path(__file__).parents[1],
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"it cannot be read in {SECONDS} seconds") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ValueError(said[-1][:200] if said else "the HDF5 library crashes when it reads it")
    stored = [tuple(shape) for shape in json.loads(done.stdout)]
    if len(stored) != len(expected):
        raise ValueError(f"it holds {len(stored)} arrays, the model {len(expected)}")
    for ours, theirs in zip(sorted(expected), sorted(stored), strict=True):
        if ours != theirs:
            raise ValueError(f"it holds an array of shape {theirs} where the model has {ours}")


def not_finite(model):
    """The path of the first weight of a model that is NaN or infinite somewhere, None where there is none.

    Terms and scores alone would hide some: ReLU turns NaN into 0 where TensorFlow joins it with the layer before it.
    """
    from keras import ops

    return next((w.path for w in model.weights if not np.isfinite(ops.convert_to_numpy(w)).all()), None)


def shapes(path, most, most_arrays):
    """Shapes of the arrays in a weights file, the optimizer's left out; all is read once, to see that it can be.

    Raises ValueError for links, for arrays of anything but numbers or of more than `most` of them, and for too many.
    """
    import h5py

    found, count = [], 0

    def reason_against(name, link):
        try:  # returned, not raised: an exception gets lost in the midst of h5py
            return look(name, link)
        except Exception as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]

    def look(name, link):
        nonlocal count
        if not isinstance(link, h5py.HardLink):
            return "it holds a link, which no weights file has"
        item = file[name]
        dict(item.attrs)  # Keras reads one too
        if isinstance(item, h5py.Dataset):
            count += 1
            if item.dtype.kind not in "fiu" or item.external or item.is_virtual or item.chunks:  # which may be packed
                return "it holds something else than plain arrays of numbers"
            if math.prod(item.shape) > most or count > most_arrays:
                return f"it holds an array of shape {item.shape}, or too many"
            item[()]
            if not name.startswith("optimizer/"):
                found.append(item.shape)
        return None

    with h5py.File(path) as file:
        dict(file.attrs)
        if reason := file.visititems_links(reason_against):
            raise ValueError(reason)
    return found


def main():
    """Prints the shapes as JSON, or the reason on stderr; for `check`."""
    path, limit, most, most_arrays = sys.argv[1], *map(int, sys.argv[2:])
    with contextlib.suppress(ImportError, ValueError):  # not on Windows; not above a limit that there is
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        print(json.dumps(shapes(path, most, most_arrays)))
    except Exception as error:  # h5py raises nearly anything for a damaged file
        sys.exit((str(error).strip() or type(error).__name__).splitlines()[0])


if __name__ == "__main__":
    main()
