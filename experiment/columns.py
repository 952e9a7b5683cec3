"""The columns of history.csv, which follow from the settings of a run."""

import numpy as np

import models

TIMES = 4  # parts of the time in which the diffusion bound is logged
BOUND_BY_TIME = tuple(f"val_diffusion_{part}" for part in ("first", *(f"t{n}" for n in range(1, TIMES + 1)), "last"))


class Columns:
    """The part of a Config that says what its history has."""

    @property
    def logged(self):
        """The names of what the objective adds to the history."""
        names = models.OBJECTIVES[self.objective].logged
        if self.has("log_steps") and self.log_steps == "on":
            names += tuple(f"{what}_{k}" for what in ("acceptance", "step") for k in range(1, self.num_steps + 1))
        return names

    @property
    def terms(self):
        """The names of what the history has of each split."""
        rates = [f"rate_{layer}" for layer in self.layers]
        return ("loss", "elbo", "rate", "distortion", *rates, *self.logged)

    @property
    def columns(self):
        """The names of the columns of history.csv."""
        return ("epoch", *(f"{split}_{term}" for split in self.splits for term in self.terms), *self.watched, "seconds")

    @property
    def watched(self):
        """The names of the columns beside the terms, each of one split."""
        found = ("train_skipped",) * (self.skip_norm is not None) + ("val_log_px",) * bool(self.watch_log_px)
        if self.diagnostics == "on":
            found += ("train_grad_norm", "val_active_units")
            found += ("val_bits_per_dim",) * (self.observation != "gaussian")  # a density has no bits
            found += BOUND_BY_TIME if self.has("diffusion_steps") else ()
        return found

    @property
    def splits(self):
        """The splits that the history has, the one that is monitored last."""
        return ("train", "val") if self.validation == "split" else ("train",)

    @property
    def monitor(self):
        """The column of the validation value of what is trained: the best weights and patience follow it."""
        return f"{self.splits[-1]}_{'bound' if 'bound' in self.terms else 'elbo'}"

    def kept(self, values):
        """The index of the epoch whose weights are kept, by its `monitor`: the best, or without validation the last."""
        return int(np.argmax(values)) if "val" in self.splits else len(values) - 1
