"""A search over ranges of settings by Optuna, which proposes the settings of one run after the other."""

import contextlib
import dataclasses
from pathlib import Path

from experiment import Config
from experiment.flags import Range
from grids import leaderboard
from grids.configs import check_ranges
from runtime.errors import UserError

INCOMPARABLE = ("data_set", "binarize", "likelihood", "sigma")  # settings by which ELBOs are of something else
ELSEWHERE = tuple(field.name for field in dataclasses.fields(Config) if field.metadata["tag"] is None)
DIGITS = 3  # of a number that is proposed, so that it can be read, and be part of a name


class Search:
    """A study of `trials` runs that maximises the best validation ELBO, kept in the grid's folder as optuna.db.

    `lists` is a dict of setting to its values, one, several, or a Range. It gives a Config for each trial that
    is not over: first those that were being trained when an earlier process ended, then new ones, proposed by the
    tree-structured Parzen estimator (Bergstra et al. 2011). Trials of an earlier process count. Raises UserError
    without Optuna, and where the study is of other settings.
    """

    def __init__(self, lists, trials):
        try:
            import optuna
        except ImportError as error:
            raise UserError("--search optuna needs Optuna: pip install -r requirements/extras.txt") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.total = optuna, trials
        self.fixed = {name: values[0] for name, values in lists.items() if is_fixed(values)}
        self.free = {name: values for name, values in lists.items() if name not in self.fixed}
        if not self.free:
            raise UserError("--search optuna needs a range to search, as --lr 1e-5..1e-2, or several values of a flag")
        if unlike := [name for name in INCOMPARABLE if name in self.free]:
            raise UserError(f"--{unlike[0]} takes one value in a search: ELBOs of several could not be compared")
        for name, values in self.free.items():
            check_ranges(name, values)
            if name in ELSEWHERE:
                raise UserError(f"--{name} takes one value in a search: it changes no number of a run")
        self.distributions = {name: self._distribution(values) for name, values in self.free.items()}
        self.study = self._study(**self.fixed)
        of, trials = optuna.trial.TrialState, self.study.trials
        self.left = [trial for trial in trials if trial.state == of.RUNNING]
        self.done = len(trials) - len(self.left)
        self.configs = {self._config(trial): trial.number for trial in trials if trial.state == of.COMPLETE}
        self.notes = dict.fromkeys(self.configs, "already trained")  # a word on each Config of `configs`

    def _distribution(self, values):
        of = self.optuna.distributions
        if not isinstance(values[0], Range):
            return of.CategoricalDistribution(values)
        whole = isinstance(values[0].low, int)
        return (of.IntDistribution if whole else of.FloatDistribution)(*values[0], log=values[0].is_logarithmic)

    def _study(self, gs_key, runs_dir=Config.runs_dir, seed=Config.seed, **_):
        path = Path(runs_dir, gs_key, "optuna.db")
        about = {name: str(value) for name, value in {**self.fixed, **self.free}.items() if name not in ELSEWHERE}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            study = self.optuna.create_study(
                storage=f"sqlite:///{path.absolute()}",
                study_name=gs_key,
                direction="maximize",
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy has one for each way in which a file can be no database
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} cannot be used: {reason}; choose another --gs_key or --runs_dir") from error
        if study.user_attrs.setdefault("settings", about) != about:
            raise UserError(f"{path} is a search over other settings; choose another --gs_key")
        study.set_user_attr("settings", about)
        study.sampler = self.optuna.samplers.TPESampler(seed=seed + len(study.trials))
        return study

    def __iter__(self):
        return self

    def __next__(self):
        """The next Config to train. Raises StopIteration where there is none, or none until another has ended."""
        while self.left or len(self.study.trials) < self.total:
            trial = self.left.pop(0) if self.left else self._asked()
            try:
                config = self._config(trial)
            except UserError as error:  # settings that do not go together
                self._tell(trial.number, None)
                print(f"trial {trial.number} is left out: {error}", flush=True)
                continue
            if config in self.configs:  # proposed before, as whole numbers are
                self._tell(trial.number, self._value(config))
                continue
            self.configs[config] = trial.number
            if leaderboard.status_of(config).get("state") != "finished":
                return config
            self.ended(config, "already trained")
        raise StopIteration

    def _config(self, trial):
        short = {name: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for name, v in trial.params.items()}
        return Config(**self.fixed, **short)

    def _value(self, config):
        status = leaderboard.status_of(config)
        return status["best_val_elbo"] if status.get("state") == "finished" else None

    def _asked(self):
        with self._stored():
            return self.study.ask(self.distributions)

    def _tell(self, number, value):
        state = self.optuna.trial.TrialState.FAIL if value is None else None
        with self._stored():
            self.study.tell(number, value, state=state)

    @contextlib.contextmanager
    def _stored(self):
        """Turns a failure to write the study into a UserError."""
        try:
            yield
        except self.optuna.exceptions.StorageInternalError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"the search cannot be written: {reason}; the same command goes on") from error

    def ended(self, config, note):
        """Tells the study how a run ended; unless it is finished, the next command goes on with it, or tries again."""
        self.notes[config] = note
        if (value := self._value(config)) is not None:
            self._tell(self.configs[config], value)

    def label(self, config):
        """The settings of a trial, short."""
        return ", ".join(f"{name} {getattr(config, name)}" for name in self.free)

    @property
    def best(self):
        """The settings of the best trial, as flags; an empty text before there is one."""
        if not (done := self.study.get_trials(states=[self.optuna.trial.TrialState.COMPLETE])):
            return ""
        config = self._config(max(done, key=lambda trial: trial.value))
        return " ".join(f"--{name} {getattr(config, name)}" for name in self.free)


def is_fixed(values):
    """Whether a setting with these values is not searched for."""
    return len(values) == 1 and not isinstance(values[0], Range)
