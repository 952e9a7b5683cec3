"""Runs of a grid on a Ray cluster: each is a task that asks for CPUs and GPUs and survives the loss of its node."""

import signal
import socket
import time

from experiment.flags import words_of
from experiment.folder import is_held
from grids import workers
from runtime import backend
from runtime.errors import UserError

RETRIES = 3  # of a task whose node or worker is lost; the run goes on from its newest state
CONNECTED = 10  # seconds for the head of a cluster to answer
RELEASED = 120  # seconds for a lost task's process to end, and its run's lock with it
QUEUED = 1000  # tasks that are handed to Ray at once: it starts them as there is room


class Tasks:
    """Starts runs on the cluster of this address ("auto": the one of this machine), each with so many CPUs and GPUs.

    The checkout and the runs' folder lie where all nodes find them, by the same path. Raises UserError where Ray is not
    installed, or no cluster answers, or none of its nodes has what a run asks for.
    """

    def __init__(self, address, cpus, gpus, words=()):
        try:
            import ray
        except ImportError as error:
            raise UserError("--cluster needs Ray: pip install -r requirements/extras.txt") from error
        self.ray, self.words = ray, words
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if ":" in address:  # else Ray would try for minutes
                host, port = address.removeprefix("ray://").rsplit(":", 1)
                socket.create_connection((host, int(port)), timeout=CONNECTED).close()
            with backend.quiet():
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            for number, handler in usual.items():  # which Ray makes its own
                signal.signal(number, handler)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--cluster {address}: {reason}; start one with: ray start --head") from error
        asked = {"CPU": cpus, "GPU": gpus}
        if not any(all(node["Resources"].get(k, 0) >= n for k, n in asked.items()) for node in ray.nodes()):
            ray.shutdown()
            raise UserError(f"--cluster {address}: no node has {cpus:g} CPUs and {gpus:g} GPUs for a run")
        self.slots = QUEUED
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}
        self.remote = ray.remote(**options)(trained)
        self.environment = dict.fromkeys(workers.THREADS, str(max(1, round(cpus)))) | {
            "TF_FORCE_GPU_ALLOW_GROWTH": "true"
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ray.shutdown()

    def start(self, config, slot, again=False):
        """The Task that trains this run."""
        words = [*words_of(config), *self.words]
        return Task(
            self.ray, self.remote.remote(words, self.environment, workers.log_of(config), config.path.absolute())
        )


class Task:
    """A run's task, with what a Popen has: `poll` to its exit code, `terminate`, `kill` and `wait`."""

    def __init__(self, ray, reference):
        self.ray, self.reference, self.code = ray, reference, None

    def poll(self):
        """The exit code; None while it runs or waits for room."""
        if self.code is None and self.ray.wait([self.reference], timeout=0)[0]:
            self.code = self._result()
        return self.code

    def _result(self):
        errors = self.ray.exceptions
        try:
            return self.ray.get(self.reference)
        except (errors.TaskCancelledError, errors.RayTaskError):
            return workers.STOPPED
        except errors.RayError:  # the worker, its node, or its memory was lost more often than RETRIES
            return -9

    def terminate(self):
        """Asks it to stop between two steps."""
        self.ray.cancel(self.reference)

    def kill(self):
        """Ends it at once."""
        self.ray.cancel(self.reference, force=True)

    def wait(self):
        """Waits for its end."""
        while self.poll() is None:
            time.sleep(workers.TICK)


def trained(words, environment, log, path):
    """On a node: trains a run by these words, and returns the exit code.

    Where this process dies, that of the run ends with it.
    """
    patience = time.monotonic() + RELEASED
    while is_held(path) and time.monotonic() < patience:
        time.sleep(1)
    worker = workers.Worker(environment)
    worker.train(words, log)
    try:
        while worker.poll() is None:
            time.sleep(workers.TICK)
        return worker.code
    except BaseException:  # Ray cancels by KeyboardInterrupt
        worker.terminate()
        raise
    finally:
        worker.end()
        worker.wait()
