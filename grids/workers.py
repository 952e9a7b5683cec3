"""Several runs of a grid at a time, in processes of their own."""

import collections
import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from experiment.flags import words_of
from runtime.command import STOPPED
from runtime.errors import UserError
from runtime.memory import gpus, memory

TRAIN = Path(__file__).parents[1] / "train.py"
ATTEMPTS = 2  # at a run whose process is killed: it goes on where it was, and memory may be free by then
TICK, LOOK = 0.1, 1.0  # seconds between looks at processes, and at what they wrote
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
MOST_OF_A_GPU = 0.9  # of its memory, for all the runs on it


def log_of(config):
    """The file that takes what the training of a run says; its folder is there."""
    path = config.path.parent.absolute() / "logs" / f"{config.training_id}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another --runs_dir") from error
    return path


def serve(train):
    """What a worker does: `train(words)` for each line of standard input, which has the words and a log file in JSON.

    All that it says goes to the log, and the exit code to standard output. Where the input ends, because the process
    behind it has gone, the training that is under way ends as with SIGTERM.
    """
    asked, answers = queue.SimpleQueue(), os.fdopen(os.dup(1), "w")

    def read():
        with os.fdopen(os.dup(0)) as lines:
            for line in lines:
                asked.put(json.loads(line))
        asked.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # what a killed run said should be in its log
    while (job := asked.get()) is not None:
        words, log = job
        with open(log, "ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        code = train(words)
        sys.stdout.flush()
        with contextlib.suppress(BrokenPipeError):  # no one is there to read it
            print(code, file=answers, flush=True)
    return 0


class Worker:
    """A process that trains one run after the other, as with `serve`, on so many cores."""

    def __init__(self, environment, cores=()):
        self.process = subprocess.Popen(
            [sys.executable, str(TRAIN), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C is for us, who tell it
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        if cores and hasattr(os, "sched_setaffinity"):  # before it has threads, so that all of them are there
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self.process.pid, cores)

    def train(self, words, log):
        """Trains the run that these words of a command ask for."""
        self.code = None
        with contextlib.suppress(BrokenPipeError):  # it has died, which `poll` says
            self.process.stdin.write(f"{json.dumps([words, str(log)])}\n".encode())
            self.process.stdin.flush()

    def poll(self):
        """The exit code of the run that was asked for last, or of the process; None while it is being trained."""
        if self.code is None:
            dead = self.process.poll()  # first: it may answer, and end
            answer = self.process.stdout.readline()
            self.code = int(answer) if answer else dead
        return self.code

    def terminate(self):
        """Asks it to stop between two steps, and to end."""
        self.process.terminate()
        self.end()

    def end(self):
        """Lets it end when it has nothing to do."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def kill(self):
        """Ends it at once."""
        self.process.kill()

    def wait(self):
        """Waits for its end."""
        self.process.wait()


class Workers:
    """A context that trains runs on this machine, in `slots` Workers with a share of cores, memory and GPUs each."""

    def __init__(self, slots, words=()):
        self.slots, self.words, self.workers = slots, words, {}
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self.cores = [list(cores)[slot % len(cores) :: slots] for slot in range(slots)]
        self.gpus, self.memory = gpus(), memory() // slots

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.end()
            worker.wait()

    def environment(self, slot):
        """What a slot's worker finds in its environment."""
        found = {"VAMPVAE_MEMORY": str(self.memory)} | dict.fromkeys(THREADS, str(len(self.cores[slot])))
        if self.gpus:
            share = MOST_OF_A_GPU / math.ceil(self.slots / len(self.gpus))
            found |= {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.3f}"}
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return found

    def start(self, config, slot, again=False):
        """The Worker that trains this run; `again`: one that died had begun it, so it is not to be overwritten."""
        worker = self.workers.get(slot)
        if worker is None or worker.process.poll() is not None:
            worker = self.workers[slot] = Worker(self.environment(slot), self.cores[slot])
        words = [word for word in self.words if not (again and word == "--overwrite")]
        worker.train([*words_of(config), *words], log_of(config))
        return worker


def was_killed(code):
    """Whether a process with this exit code was ended by a signal that no one here sent, as for want of memory."""
    return code < 0 and -code not in (signal.SIGTERM, signal.SIGINT)


def note_of(config, code):
    """A word on how the process of a run ended."""
    if code in (STOPPED, -signal.SIGTERM):  # the latter before it had begun
        return "stopped; the same command goes on"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}{', as for want of memory' * (-code == signal.SIGKILL)}"
    said = log_of(config).read_text(errors="replace").splitlines() if code else []
    return said[-1].removeprefix("error: ") if said else f"exit code {code}" if code else ""


def work_off(wanted, launcher, view, ended=lambda config, note: None):
    """Trains the runs that the iterator `wanted` yields, as many at a time as the launcher has slots.

    `wanted` is asked whenever a slot is free, and may end before all is trained. `ended` is told how each run ended.
    Returns whether it was stopped by Ctrl-C, the states of all runs being written.
    """
    free, active, killed = list(range(launcher.slots)), {}, collections.Counter()
    try:
        while True:
            while free and (config := next(wanted, None)) is not None:
                slot = free.pop(0)
                active[config] = slot, launcher.start(config, slot)
                view.started(config)
            if not active:
                return False
            for config, (slot, process) in list(active.items()):
                if (code := process.poll()) is None:
                    continue
                killed[config] += was_killed(code)
                if was_killed(code) and killed[config] < ATTEMPTS:
                    active[config] = slot, launcher.start(config, slot, again=True)
                    continue
                del active[config]
                free.append(slot)
                view.ended(config, note_of(config, code))
                ended(config, note_of(config, code))
            view.look()
            time.sleep(TICK)
    except KeyboardInterrupt:
        view.say(f"stopping {len(active)} runs after their step, so that nothing is lost; once more: at once")
        processes = {config: process for config, (_, process) in active.items()}
        stop(processes.values())
        for config, process in processes.items():
            view.ended(config, note_of(config, process.poll()))
            ended(config, note_of(config, process.poll()))
        return True


def stop(processes):
    """Ends them between two steps, and returns when they have; with Ctrl-C at once."""
    try:
        for process in processes:
            process.terminate()
        while any(process.poll() is None for process in processes):
            time.sleep(TICK)
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
            process.wait()
