"""RunWriter: keeps the folder of a run while it is trained."""

import contextlib
import time

import keras
import safetensors.numpy

from experiment import weights
from experiment.folder import process
from models.weight_names import named_weights
from runtime import atomic
from runtime.errors import RunError
from runtime.memory import is_out_of_memory
from training import checkpoint
from training.memory import smaller


class RunWriter(keras.callbacks.Callback):
    """Keeps the run's folder: after each epoch its state in last/, and what follows from it for people to read.

    That is best.safetensors, the weights with the best validation value of the trained bound (without validation, the
    last ones), history.csv and
    status.json. All are written after the state, so that whatever is lost when the process dies can be written again
    from that. The weights of an epoch of --snapshot_epochs are written before it, into snapshots/, as the process would
    not come back to them. Without a `path`, in a process that follows another one, nothing is written.
    """

    def __init__(self, path, config, batches, state=None, note="", instead=contextlib.nullcontext, parts=None):
        super().__init__()
        self.instead = instead  # a context in which the model has the weights that are kept
        self.path, self.config, self.batches, self.note, self.parts = path, config, batches, note, parts
        self.rows = state.rows if state else []
        self.best = state.best if state else {}
        self.spent = state.seconds if state else 0.0  # in the epoch in which training goes on
        self.validates = False
        self.saved = time.monotonic()

    @property
    def best_row(self):
        """The row of history.csv of the weights that are kept; None before there is one."""
        return self.rows[self._kept(self.rows)] if self.rows else None

    def _kept(self, rows):
        return self.config.kept([row[self.config.monitor] for row in rows])

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.started = epoch, time.perf_counter() - (self.spent if self.batches.skip else 0.0)

    def on_test_begin(self, logs=None):
        self.validates = True

    def on_test_end(self, logs=None):
        self.validates = False

    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() - self.saved > 60 * self.config.save_minutes:
            self.save_inside(batch)

    def save_inside(self, batch):
        """Writes the state inside an epoch; returns whether it is one: after the last step it is nearly over."""
        step = self.batches.done(batch)
        if step < self.batches.steps:
            self._save(self.epoch, step, time.perf_counter() - self.started, self.rows, self.best)
        return step < self.batches.steps

    def on_epoch_end(self, epoch, logs=None):
        keys = [{"train": "", "val": "val_"}[split] for split in self.config.splits]
        values = [logs[key + term] for key in keys for term in self.config.terms]
        values += [logs[name] for name in self.config.watched]
        seconds = round(time.perf_counter() - self.started, 3)
        row = dict(zip(self.config.columns, (epoch + 1, *values, seconds), strict=True))
        is_best = self._kept([*self.rows, row]) == len(self.rows)
        best, is_kept = self.best, epoch + 1 in (self.config.snapshot_epochs or ())
        if is_best or is_kept:
            with self.instead():
                values = weights.values(named_weights(self.model))
            best = values if is_best else best
        if is_kept and self.path:
            with self._writing():
                (self.path / "snapshots").mkdir(exist_ok=True)
                self._write_weights(f"snapshots/epoch{epoch + 1:09d}.safetensors", values)
        self._save(epoch + 1, 0, 0.0, [*self.rows, row], best)
        self.rows.append(row)  # once its state is written, and not before: status.json counts the rows
        self.best = best
        self.write_results(is_best)

    def _save(self, epoch, step, seconds, rows, best):
        if not self.path:
            return
        with self._writing():
            values = weights.values(checkpoint.variables(self.model))
            checkpoint.save(self.path / "last", checkpoint.State(epoch, step, seconds, rows, best, values))
        self.saved = time.monotonic()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise RunError(f"{self.path} can no longer be written: {error.strerror or error}") from error

    def write_results(self, new_best=True):
        """Writes what follows from the state, the weights first so that status never promises what is not there."""
        if not self.path:
            return
        with self._writing():
            if self.rows and new_best:
                self._write_weights("best.safetensors", self.best)
            if self.rows:
                atomic.write_csv(self.path / "history.csv", self.rows)
            self.write_status("running", process=process())

    def _write_weights(self, name, values):
        about = {"run": self.config.training_id}  # of several texts, the order would be by chance
        atomic.write(self.path / name, safetensors.numpy.save(values, about))

    @contextlib.contextmanager
    def status_of_ending(self):
        """Writes how the block ended into status.json: finished, stopped on request, or failed and why."""
        try:
            yield
            with self._writing():
                self.write_status("finished")
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # where the disk is full, not even this can be written
                self.write_status("stopped")
            raise
        except Exception as error:
            short = is_out_of_memory(error)
            where = "validation" if self.validates else "training"
            less = smaller(self.config, with_batch=not self.validates)
            ending = RunError(f"out of memory in a {where} step; {less}") if short else error
            with contextlib.suppress(OSError):
                self.write_status("failed", message=str(ending))
            if short:
                raise ending from error
            raise

    def write_status(self, state, **more):
        """Writes status.json: state, epochs done, best epoch and its ELBO, seconds spent in epochs, weights by part."""
        if not self.path:
            return
        done = {"epochs_done": len(self.rows), "seconds": round(sum(row["seconds"] for row in self.rows), 3)}
        names, row = {"best_epoch": "epoch", "best_val_elbo": "val_elbo"}, self.best_row or {}
        best = {name: row[column] for name, column in names.items() if column in row}
        about = {"state": state} | done | best | {"note": self.note, "weights": self.parts}
        atomic.write_json(self.path / "status.json", about | more)
