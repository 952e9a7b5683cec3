"""The ranking of a grid: its runs by validation ELBO, those that differ only in their seed as one row."""

import collections
import contextlib
import dataclasses
import math
import statistics

import experiment
from experiment import Config
from experiment.config import varying
from runtime import atomic, text
from runtime.errors import UserError
from runtime.text import table


def standings(configs, notes):
    """The table of a grid, by validation ELBO, and whether all is finished; `notes` is a dict of Config to words."""
    rows = [row_of(config, notes.get(config, "not started")) for config in configs]
    ranked = sorted(zip(configs, rows, strict=True), key=lambda pair: rank(*pair))
    return text.table([row for _, row in ranked]), all(row["state"] == "finished" for row in rows)


def status_of(config):
    """status.json of a run; empty where it was not started, or something else is in the way."""
    try:
        return experiment.load(config.path).status
    except UserError:
        return {}


def rank(config, row):
    """Sorts by validation ELBO, the best first, among runs that can be compared: of the same law of the same pixels."""
    return *config.comparable, -row["val_elbo"]


def row_of(config, note):
    """A row of the grid's table: run, state, best validation ELBO (nats; -inf where there is none), epoch, note."""
    status = status_of(config)
    best = status.get("best_val_elbo")
    notes = (note, "" if best is None else status.get("note", ""))
    return {
        "run": config.training_id,
        "state": status.get("state", "none"),
        "val_elbo": -math.inf if best is None else best,
        "best_epoch": status.get("best_epoch") or "",
        "note": "; ".join(filter(None, notes)),
    }


def labels(configs):
    """A dict of Config to the settings in which it differs from others of the grid, as "lr 0.001, seed 2"."""
    names = varying(configs)
    return {config: ", ".join(f"{name} {getattr(config, name)}" for name in names) or "run" for config in configs}


SCORES = ("log_px", "elbo", "bits_per_dim")
ABOUT = ("split", "tag", "num_images", "log_px_se")  # of one score
UNSHOWN = ("finished", "scored", "split", "runs")  # of the files only: another column, the heading, or long


def runs_in(folders):
    """The Runs of these folders as they are now, with or without weights; what is no run is passed over."""
    runs = []
    for folder in folders:
        with contextlib.suppress(UserError):  # of which `commandline.chosen_runs` has warned
            runs.append(experiment.load(folder))
    return runs


def report(runs, scores):
    """Prints the ranking of a grid and writes it to its folder, as ranking.csv and, run by run, ranking_runs.csv.

    `runs` are all its Runs, `scores` a dict of name to the metrics of those that were scored. Raises UserError where
    it cannot be written.
    """
    folder, (rows, lines) = runs[0].path.parent, ranking(runs, scores)
    about = f"{', '.join(SCORES)} are of the {rows[0]['split']} split"
    print(f"\nranked by validation ELBO alone ({about}); mean and sample sd over finished seeds")
    print(table(shown(rows)))
    files = {folder / "ranking.csv": rows, folder / "ranking_runs.csv": lines}
    try:
        for path, content in files.items():
            atomic.write_csv(path, content)
    except OSError as error:
        raise UserError(f"cannot write the ranking to {folder}: {error.strerror or error}") from error
    print(f"written to {' and '.join(map(str, files))}")


def ranking(runs, scores):
    """The rows of the groups of runs that differ only in their seed, and those of the runs: two lists of dicts.

    Both are in the order of the ranks, which begin anew where validation ELBOs cannot be compared. Nats an image, but
    for bits_per_dim.
    """
    names = [name for name in varying([run.config for run in runs]) if name != "seed"]
    found = sorted(((group, group_row(group, scores, names)) for group in groups(runs)), key=lambda one: order(*one))
    rows, lines, ranks = [], [], collections.Counter()
    for group, row in found:
        ranks[group[0].comparable] += 1
        rank = {"rank": None if row["val_elbo"] is None else ranks[group[0].comparable]}
        rows.append(rank | row)
        lines += [rank | run_row(run, scores.get(run.name), names) for run in group]
    return rows, lines


def order(group, row):
    """Sorts groups: those that can be compared together, the best validation ELBO first. No score has a say."""
    return group[0].comparable, math.inf if row["val_elbo"] is None else -row["val_elbo"]


def groups(runs):
    """Lists of the Runs that differ only in their seed, by seed."""
    found, copies = collections.defaultdict(list), collections.Counter()
    for run in sorted(runs, key=lambda run: run.config.seed):
        seedless = dataclasses.replace(run.config, seed=Config.seed).training_id
        same = run.comparable, run.config.training_id
        found[run.comparable, seedless, copies[same]].append(run)
        copies[same] += 1  # somebody's copy of a folder is no other seed
    return list(found.values())


def group_row(group, scores, names):
    """The row of a group: means and sample standard deviations over its finished seeds, of scores the scored ones."""
    finished = [run for run in group if run.state == "finished" and run.best_val_elbo is not None]
    scored = [run for run in finished if run.name in scores]
    columns = {"val_elbo": [run.best_val_elbo for run in finished]}  # scored or not: the ranks depend on no score
    columns |= {name: [scores[run.name][name] for run in scored] for name in SCORES}
    row = settings(group[0], names) | {"seeds": len(group), "finished": len(finished), "scored": len(scored)}
    for name, values in columns.items():
        row |= moments(name, values)
    notes = dict.fromkeys(note(run, scores.get(run.name)) for run in group)
    row |= {"split": next(iter(scores.values()))["split"], "runs": "; ".join(run.name for run in group)}
    return row | {"note": "; ".join(filter(None, notes))}


def run_row(run, score, names):
    """The line of a run; `score` its metrics, None of one that was not scored."""
    row = {"run": run.name} | settings(run, names) | {"seed": run.config.seed, "state": run.state}
    row |= {"best_epoch": run.status.get("best_epoch"), "val_elbo": run.best_val_elbo}
    return row | {name: (score or {}).get(name) for name in (*SCORES, *ABOUT)} | {"note": note(run, score)}


def settings(run, names):
    """The settings of these names as words, so that none is rounded; nothing for what means nothing for the run."""
    values = run.config.settings
    return {name: "" if values.get(name) is None else str(values[name]) for name in names}


def note(run, score):
    """What has to be said beside the run's numbers."""
    return (score or run.status).get("note", "")


def moments(name, values):
    """The mean, and the sample standard deviation of two or more; None where a value is not known."""
    known = None not in values
    return {
        name: statistics.mean(values) if values and known else None,
        f"{name}_sd": statistics.stdev(values) if len(values) > 1 and known else None,
    }


def shown(rows):
    """The rows as they are printed: without columns that are for the files only, or empty."""
    kept = [name for name in rows[0] if name not in UNSHOWN and any(row[name] not in (None, "") for row in rows)]
    return [{name: row[name] for name in kept} | {"seeds": counted(row)} for row in rows]


def counted(row):
    """How many seeds a row is of: 3, or "2 of 3 finished, 1 scored"."""
    words = [f"{row['finished']} of {row['seeds']} finished"] if row["finished"] < row["seeds"] else []
    if row["scored"] < row["finished"]:
        words.append(f"{row['scored']} scored" if words else f"{row['scored']} of {row['seeds']} scored")
    return ", ".join(words) or row["seeds"]
