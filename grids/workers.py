"""The processes that train the runs of a grid on this machine, one for each run."""

import collections
import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiment.flags import words_of
from grids.leaderboard import status_of
from runtime.command import STOPPED, stoppable
from runtime.errors import UserError
from runtime.memory import gpus, memory
from runtime.text import bounded

TRAIN = Path(__file__).parents[1] / "train.py"
ATTEMPTS = 2  # at a run whose process is killed: it resumes, and memory may be free by then
TICK = 0.1  # seconds between looks at the processes
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
MOST_OF_A_GPU = 0.9  # of its memory, for all the runs on it
STOPPED_NOTE = "stopped; the same command resumes it"


def log_of(config):
    """The log file of a run. Makes its folder, and raises UserError if that fails."""
    path = config.path.parent.absolute() / "logs" / bounded(f"{config.training_id}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another --runs_dir") from error
    return path


def train(words, environment=None, cores=(), log=None, folder=None):
    """Starts `train.py` with these words and returns the Popen. Its output is appended to `log`, or shown here.

    `folder`: where relative paths begin, here by default.

    The process gets a session of its own, so that Ctrl-C in the terminal reaches it only through `terminate`. Its
    standard input is a pipe: when this process dies, the pipe closes, and the training ends as with SIGTERM.
    """
    command = [sys.executable, "-u", str(TRAIN), "--worker", *words]  # -u: the log of a killed process is complete
    options = {"stdin": subprocess.PIPE, "env": os.environ | (environment or {}), "start_new_session": True}
    options["cwd"] = folder
    with open(log, "ab") if log else contextlib.nullcontext() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
    if cores and hasattr(os, "sched_setaffinity"):  # before the process starts threads, which inherit this
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


class Workers:
    """Starts runs on this machine, `slots` at a time.

    Several share its cores, memory and GPUs, and each writes a log file; one has all of it, and the terminal.
    """

    def __init__(self, slots, words=()):
        self.slots, self.words = slots, words
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self.cores = [list(cores)[slot % len(cores) :: slots] for slot in range(slots)]
        self.gpus, self.memory = gpus(), memory() // slots

    def environment(self, slot):
        """The environment variables that give the process in this slot its share."""
        if self.slots == 1:
            return {}
        found = {"VAMPVAE_MEMORY": str(self.memory)} | dict.fromkeys(THREADS, str(len(self.cores[slot])))
        if self.gpus:
            share = MOST_OF_A_GPU / math.ceil(self.slots / len(self.gpus))
            found |= {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.3f}"}
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return found

    def log(self, config):
        """The log file of a run; None where its output is shown instead."""
        return log_of(config) if self.slots > 1 else None

    def start(self, config, slot, again=False):
        """Starts a run and returns its process. With `again`, --overwrite is left out: the run is to be resumed."""
        words = [word for word in self.words if not (again and word == "--overwrite")]
        cores = self.cores[slot] if self.slots > 1 else ()
        return train([*words_of(config), *words], self.environment(slot), cores, self.log(config))


def was_killed(code):
    """Whether this exit code is that of a process ended by a signal that we did not send, as for lack of memory."""
    return code < 0 and -code not in (signal.SIGTERM, signal.SIGINT)


def note_of(config, code, log=None):
    """How the process of a run ended, in words; empty if all went well. `log`: its log file, if it has one."""
    if code in (STOPPED, -signal.SIGTERM):  # the latter before it could react
        return STOPPED_NOTE
    if code < 0:
        return f"killed by {signal.Signals(-code).name}{', probably for lack of memory' * (-code == signal.SIGKILL)}"
    if code == 0:
        return ""
    said = log.read_text(errors="replace").splitlines() if log else []
    if said:
        return said[-1].removeprefix("error: ")
    failed = code == 1 and status_of(config).get("message")  # code 2 leaves the status of an earlier attempt
    return failed or f"exit code {code}; its output says why"


def work_off(wanted, launcher, view, ended=lambda config, note: None):
    """Trains the Configs of the iterator `wanted`, as many at a time as the launcher has slots.

    The iterator is asked whenever a slot is free; it may end, and have more after a run has ended. `ended` is called
    with each Config and its note. Returns whether Ctrl-C stopped it, with the state of every run written.
    """
    free, running, killed = list(range(launcher.slots)), {}, collections.Counter()

    def end(config, code):
        note = note_of(config, code, launcher.log(config))
        view.ended(config, note)
        ended(config, note)

    try:
        while True:
            while free and (config := next(wanted, None)) is not None:
                slot = free.pop(0)
                view.started(config)
                running[config] = slot, launcher.start(config, slot)
            if not running:
                return False
            for config, (slot, process) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                killed[config] += was_killed(code)
                if was_killed(code) and killed[config] < ATTEMPTS:
                    running[config] = slot, launcher.start(config, slot, again=True)
                    continue
                del running[config]
                free.append(slot)
                end(config, code)
            time.sleep(TICK)
    except KeyboardInterrupt:
        view.say("stopping after the current step, so that nothing is lost; Ctrl-C again stops at once")
        for config, code in stop(running).items():
            end(config, STOPPED if was_killed(code) else code)
        return True
    finally:
        stop(running)


def stop(running):
    """Ends processes, a dict of Config to (slot, process), between two steps, on Ctrl-C at once; returns the codes.

    A closed terminal sends its signal twice, and a scheduler may, too: these do not end them at once.
    """
    processes = [process for _, process in running.values()]
    try:
        with stoppable(lambda number, frame: number == signal.SIGINT and signal.default_int_handler(number, frame)):
            for process in processes:
                process.terminate()
            while any(process.poll() is None for process in processes):
                time.sleep(TICK)
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
            process.wait()
    return {config: process.poll() for config, (_, process) in running.items()}
