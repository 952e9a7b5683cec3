"""One of several processes that train a run together: how it joins the others, communicates, and ends.

JAX connects the processes. It ends a process by force if that has lost the first one, or no longer hears of another
one. So the process that a user starts is only a guard: its child process trains, and the guard reports how that ended.
In a process that has joined no others, what is for all of them concerns itself alone.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import traceback
from types import SimpleNamespace

import numpy as np

from grids import workers
from runtime.command import end_with_parent, stoppable
from runtime.errors import RunError, UserError

STARTED = 300  # seconds within which all processes must have started
SILENT = 30  # seconds without a sign of life, after which a process counts as dead
GATHERED = 30  # seconds within which all must have ended
LOST = "another process of this run has ended, perhaps with a message of its own; start all of them again, and the "
LOST += "run resumes from its newest state"
LOSSES = ("Gloo", "NCCL", "coordination service", "CoordinationService")  # words in the errors of a lost process
VARIABLES = {"process_address": "JAX_COORDINATOR_ADDRESS", "num_processes": "JAX_NUM_PROCESSES"}
VARIABLES |= {"process_index": "JAX_PROCESS_ID"}

_self = SimpleNamespace(joined=False, index=0, busy=False)  # this process; busy: in the middle of a run


def guarded(flags):
    """Runs train.py with these parsed flags, a dict, in a child process, and returns its exit code.

    Passes signals on to it. If it is ended by force, prints a likely reason and returns 1. It ends when this process
    ends, in whatever way.
    """
    process = workers.train(["--member", json.dumps(flags)])
    with stoppable(lambda number, _: process.send_signal(number)):
        code = process.wait()
    if code >= 0:
        return code
    reason = "out of memory, or killed by hand" if code == -signal.SIGKILL else LOST
    print(f"error: the training process was ended by {signal.Signals(-code).name}: {reason}", file=sys.stderr)
    return 1


def serve(train):
    """Calls `train()` in the guard's child process, then leaves the others; returns the exit code.

    If the guard dies, the training stops as after SIGTERM. If this process failed, it does not wait for the others.
    """
    end_with_parent()
    try:
        code = train()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    if not _self.joined:
        return code
    if _self.busy:  # this process failed, or another one did: waiting for a common end would take until a timeout
        sys.stderr.flush()
        os._exit(code)
    import jax

    if leads():
        order({"code": code})
    jax.distributed.shutdown()
    return code


def place(args):
    """The address of the first process, the number of processes and this one's index, by flags or JAX's variables.

    Each is None if neither gives it: JAX finds them under Slurm. Raises UserError for impossible values.
    """
    address, count, index = (
        given if (given := getattr(args, flag)) is not None else os.environ.get(variable)
        for flag, variable in VARIABLES.items()
    )
    port = (address or "").rpartition(":")[2]
    if address is not None and not (":" in address and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--process_address {address!r} must be HOST:PORT, with a free port of the first process")
    for flag, value in (("num_processes", count), ("process_index", index)):
        if value is not None and not str(value).isdecimal():
            raise UserError(f"${VARIABLES[flag]} {value!r} must be a whole number")
    count, index = (None if value is None else int(value) for value in (count, index))
    if None not in (count, index) and index >= count:
        raise UserError(f"--process_index {index} must be less than --num_processes {count}; the first one is 0")
    return address, count, index


def join(address, count, index):
    """Connects this process with the others, before JAX computes anything. Raises UserError if that fails."""
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM
    waits = {"initialization_timeout": STARTED, "heartbeat_timeout_seconds": SILENT}
    try:
        jax.distributed.initialize(address, count, index, shutdown_timeout_seconds=GATHERED, **waits)
        _self.joined, _self.index = True, jax.process_index()
    except ValueError as error:
        missing = " and ".join(f"--{flag} (or ${variable})" for flag, variable in VARIABLES.items())
        raise UserError(f"--distribute processes: {error}; give {missing}, or start it by srun") from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--distribute processes: the others cannot be reached at {address}: {reason}") from error


def leads():
    """Whether this is the first process, which writes the run's folder and shows its progress, or the only one."""
    return _self.index == 0


def order(what=None):
    """A JSON value that the first process sends to all; the others get it by calling this without one."""
    if not _self.joined:
        return what
    content = np.frombuffer(json.dumps(what).encode(), np.uint8) if leads() else np.zeros(0, np.uint8)
    size = int(broadcast(np.array(len(content))))
    return json.loads(broadcast(content if leads() else np.zeros(size, np.uint8)).tobytes())


def broadcast(values):
    """The first process's arrays, in any structure; the other processes pass arrays of the same shapes."""
    if not _self.joined:
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(values)


def any_of(flag):
    """Whether `flag` is true in any process. All processes must call this at the same step."""
    if not _self.joined:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def begin(config):
    """Tells the other processes to train a run of this Config, by `fit.follow`."""
    if leads():
        order({"config": dataclasses.asdict(config)})
    _self.busy = True


def done():
    """Notes that all processes have finished this run, or have stopped at the same step."""
    _self.busy = False


def is_busy():
    """Whether this process is in the middle of a run, where the processes wait for one another."""
    return _self.busy


@contextlib.contextmanager
def reporting_losses():
    """Raises RunError if the block fails because another process cannot be reached."""
    try:
        yield
    except Exception as error:
        if _self.joined and any(word in str(error) for word in LOSSES):
            raise RunError(LOST) from error
        raise
