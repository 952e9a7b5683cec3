"""A search over ranges of settings by Optuna, which proposes the settings of one run after the other."""

import contextlib
import dataclasses
import itertools
import sqlite3
from pathlib import Path

from experiment import Config, own
from experiment.flags import Range, is_one_value
from experiment.settings import checked
from grids import leaderboard
from grids.configs import hash_of
from runtime.errors import UserError
from runtime.text import word

INCOMPARABLE = ("data_set", "image_size", "binarize", "likelihood", "sigma")  # ELBOs are not comparable across these
NO_NUMBERS = tuple(field.name for field in dataclasses.fields(Config) if field.metadata["tag"] is None)
DIGITS = 3  # of a proposed number, as it becomes part of a folder's name
MOST_TRIED = 1000  # combinations of settings, of which a search needs one that can be a run
WIDE = 10  # times as large: from here on a range of positive numbers is searched by its logarithm


class Search:
    """An iterator over the Configs of a study that maximises the best validation ELBO over `trials` runs.

    `lists` maps each setting to its values: one, several, or a Range. The first Configs are those that an earlier
    process left unfinished. New ones are proposed by the tree-structured Parzen estimator (Bergstra et al. 2011). The
    study is kept in the grid's folder as optuna.db, and the trials of earlier processes count. Raises UserError if
    Optuna is not installed, settings cannot be searched, or the study is of other settings.
    """

    def __init__(self, lists, trials):
        try:
            import optuna
        except ImportError as error:
            raise UserError("--search optuna needs Optuna: pip install -r requirements/extras.txt") from error
        if "none" in lists.get("validation", ()):
            raise UserError("--search optuna maximises the validation ELBO, and --validation none has none")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.total = optuna, trials
        self.fixed = {name: values[0] for name, values in lists.items() if is_one_value(values)}
        self.fixed |= hash_of(self.fixed.get("init_from"))
        self.free = {name: values for name, values in lists.items() if name not in self.fixed}
        check_free(self.free)
        self.lists = {name: {word(value): value for value in values} for name, values in self.free.items()}
        self.distributions = {name: self._distribution(values) for name, values in self.free.items()}
        self._check_together()
        self.study = self._study(**self.fixed)
        states, trials = optuna.trial.TrialState, self.study.trials
        self.left = [trial for trial in trials if trial.state == states.RUNNING]
        self.to_train = len(self.left) + max(0, self.total - len(trials))
        self.configs = {self._config(trial): trial.number for trial in trials if trial.state == states.COMPLETE}
        self.notes = dict.fromkeys(self.configs, leaderboard.ALREADY)  # Config to text

    def _distribution(self, values):
        kinds = self.optuna.distributions
        if not isinstance(values[0], Range):
            return kinds.CategoricalDistribution([word(value) if type(value) is tuple else value for value in values])
        low, high = values[0]
        kind = kinds.IntDistribution if isinstance(low, int) else kinds.FloatDistribution
        return kind(low, high, log=low > 0 and high >= WIDE * low)

    def _check_together(self):
        """Raises the first UserError if no combination of lists, whole numbers and ends of ranges can be a run.

        Where there are more than MOST_TRIED, the others may well be runs.
        """
        errors, values = [], [self._tried(found) for found in self.free.values()]
        for choice in itertools.islice(itertools.product(*values), MOST_TRIED + 1):
            try:
                Config(**self.fixed, **dict(zip(self.free, choice, strict=True)))
                return
            except UserError as error:
                errors.append(error)
        if len(errors) <= MOST_TRIED:
            raise errors[0]

    @staticmethod
    def _tried(values):
        if not isinstance(values[0], Range):
            return values
        low, high = values[0]
        return range(low, high + 1)[: MOST_TRIED + 1] if isinstance(low, int) else (low, high)

    def _study(self, gs_key, runs_dir=Config.runs_dir, seed=Config.seed, **_):
        path = Path(runs_dir, gs_key, "optuna.db")
        about = {name: str(value) for name, value in {**self.fixed, **self.free}.items() if name not in NO_NUMBERS}
        connect = {"creator": lambda: sqlite3.connect(path, check_same_thread=False)}  # a URL cannot hold every path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            storage = self.optuna.storages.RDBStorage("sqlite://", connect)
            where = {"storage": storage, "study_name": gs_key, "load_if_exists": True}
            study = self.optuna.create_study(direction="maximize", **where)
        except Exception as error:  # SQLAlchemy raises many kinds for a file that is no database
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
        """The next Config to train. Raises StopIteration if all trials have started."""
        while self.left or len(self.study.trials) < self.total:
            with self._stored():
                trial = self.left.pop(0) if self.left else self.study.ask(self.distributions)
            try:
                config = self._config(trial)
            except UserError as error:  # these settings do not go together
                self._tell(trial.number, None)
                print(f"trial {trial.number} is skipped: {error}", flush=True)
                continue
            if config in self.configs:  # proposed before, as whole numbers often are
                self._tell(trial.number, self._value(config))
                print(f"trial {trial.number} repeats trial {self.configs[config]}", flush=True)
                continue
            self.configs[config] = trial.number
            if not leaderboard.is_finished(config):
                return config
            self.ended(config, leaderboard.ALREADY)
        raise StopIteration

    def _config(self, trial):
        return Config(**self.fixed, **{name: self._chosen(name, value) for name, value in trial.params.items()})

    def _chosen(self, name, value):
        """The value of a setting that the study's `value` stands for: one of a list, or a short number of a Range."""
        if isinstance(ends := self.free[name][0], Range):
            return value if isinstance(value, int) else min(max(float(f"{value:.{DIGITS}g}"), ends.low), ends.high)
        return self.lists[name].get(value, value)

    def _value(self, config):
        return leaderboard.status_of(config).get("best_val_elbo") if leaderboard.is_finished(config) else None

    def _tell(self, number, value):
        state = self.optuna.trial.TrialState.FAIL if value is None else None
        with self._stored():
            self.study.tell(number, value, state=state, skip_if_finished=True)  # by another process

    @contextlib.contextmanager
    def _stored(self):
        try:
            yield
        except self.optuna.exceptions.StorageInternalError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"the search cannot be written: {reason}; the same command resumes it") from error

    def ended(self, config, note):
        """Tells the study how a run ended. A trial whose run is not finished stays open for the next command."""
        self.notes[config] = note
        if (value := self._value(config)) is not None:
            self._tell(self.configs[config], value)

    @property
    def best(self):
        """The settings of the best trial, as flags; an empty text before the first is complete."""
        if not (done := self.study.get_trials(states=[self.optuna.trial.TrialState.COMPLETE])):
            return ""
        config = self._config(max(done, key=lambda trial: trial.value))
        texts = {name: word(getattr(config, name)) for name in self.free}
        return " ".join(f"--{name} {own.flag_of(text) if name in own.PICKS else text}" for name, text in texts.items())


def check_free(free):
    """Raises UserError unless these settings, a dict of name to values, can be searched."""
    if not free:
        raise UserError("--search optuna needs a range to search, as --lr 1e-5..1e-2, or several values of a flag")
    if searched := [name for name in INCOMPARABLE if name in free]:
        raise UserError(f"--{searched[0]} takes one value in a search: ELBOs of several could not be compared")
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for name, values in free.items():
        if any(isinstance(value, Range) for value in values) and len(values) > 1:
            raise UserError(f"--{name} takes a range or single values, not both")
        for end in values[0] if isinstance(values[0], Range) else values:
            checked(fields[name], end)
        if name in NO_NUMBERS:
            raise UserError(f"--{name} takes one value in a search: it changes no number of a run")
