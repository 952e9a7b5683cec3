"""Runs of a grid on a Ray cluster: each is a task that asks for CPUs and GPUs and survives the loss of its node."""

import os
import signal
import socket
import time

from experiment.flags import words_of
from experiment.folder import is_held
from grids import workers
from runtime import backend
from runtime.command import STOPPED
from runtime.errors import UserError

RETRIES = 3  # of a task whose node or process is lost; its run resumes from the newest state
CONNECTED = 10  # seconds for the head of a cluster to answer
RELEASED = 120  # seconds for the process of a lost task to end and release the lock of its run
QUEUED = 1000  # tasks that Ray has at once: it starts them as nodes have room


class Tasks:
    """A context that starts runs on the Ray cluster at this address, each with `cpus` CPUs and `gpus` GPUs.

    Address "auto" is the cluster of this machine. All nodes must find the checkout and the runs at the same paths.
    Raises UserError if Ray is not installed, no cluster answers, or no node has the CPUs and GPUs.
    """

    log = staticmethod(workers.log_of)

    def __init__(self, address, cpus, gpus, words=()):
        if not address:
            raise UserError("--cluster has an empty address; write auto for the cluster of this machine")
        try:
            import ray
        except ImportError as error:
            raise UserError("--cluster needs Ray: pip install -r requirements/extras.txt") from error
        self.ray, self.words, self.slots = ray, words, QUEUED
        self._connect(address)
        asked = {"CPU": cpus, "GPU": gpus}
        if not any(all(node["Resources"].get(k, 0) >= n for k, n in asked.items()) for node in ray.nodes()):
            ray.shutdown()
            raise UserError(f"--cluster {address}: no node has {cpus:g} CPUs and {gpus:g} GPUs for a run")
        self.remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(trained)
        self.environment = dict.fromkeys(workers.THREADS, str(max(1, round(cpus))))
        self.environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"

    def _connect(self, address):
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if ":" in address:  # otherwise Ray would try for minutes
                host, port = address.removeprefix("ray://").rsplit(":", 1)
                socket.create_connection((host, int(port)), timeout=CONNECTED).close()
            with backend.quiet():
                self.ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            for number, handler in usual.items():  # Ray has set its own
                signal.signal(number, handler)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--cluster {address}: {reason}; start one with: ray start --head") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ray.shutdown()

    def start(self, config, slot, again=False):
        """Starts a run and returns its Task."""
        words, path = [*words_of(config), *self.words], config.path.absolute()
        log = self.log(config)
        return Task(self.ray, self.remote.remote(words, self.environment, log, path, os.getcwd()), log)


class Task:
    """The task of a run, with the methods of a Popen that grids use: poll, terminate, kill and wait.

    Where Ray could not run it, or lost its node, process or memory more than RETRIES times, its log ends with why.
    """

    def __init__(self, ray, reference, log):
        self.ray, self.reference, self.log, self.code = ray, reference, log, None

    def poll(self):
        if self.code is None and self.ray.wait([self.reference], timeout=0)[0]:  # it no longer runs or waits for room
            errors = self.ray.exceptions
            try:
                self.code = self.ray.get(self.reference)
            except errors.TaskCancelledError:
                self.code = STOPPED
            except errors.RayError as error:
                said = str(getattr(error, "cause", None) or error).strip().splitlines()
                with open(self.log, "a", encoding="utf-8") as log:
                    print(f"error: {said[0] if said else type(error).__name__}", file=log)
                self.code = 1
        return self.code

    def terminate(self):
        self.ray.cancel(self.reference)

    def kill(self):
        self.ray.cancel(self.reference, force=True)

    def wait(self):
        while self.poll() is None:
            time.sleep(workers.TICK)


def trained(words, environment, log, path, folder):
    """Trains a run on a node, with these words, in the folder where the command was given, and returns the exit code.

    `path` is the run's folder: if another process still holds it, as one that has lost its node, that must end first.
    """
    deadline = time.monotonic() + RELEASED
    while is_held(path) and time.monotonic() < deadline:
        time.sleep(1)
    process = workers.train(words, environment, log=log, folder=folder)
    try:
        while (code := process.poll()) is None:
            time.sleep(workers.TICK)
        return code
    except BaseException:  # Ray cancels a task by KeyboardInterrupt
        process.terminate()
        process.wait()
        raise
