"""Tables of the runs of a grid, ranked by validation ELBO alone: after training, and with the scores of evaluate.py."""

import collections
import contextlib
import math
import statistics

import experiment
from experiment.differences import groups, resolved, varying
from runtime import atomic, text
from runtime.errors import UserError

SCORES = ("log_px", "elbo", "bits_per_dim")
ABOUT = ("split", "tag", "num_images", "log_px_se")  # of one score
ALREADY = "already trained"
FILES_ONLY = ("finished", "scored", "split", "runs")  # columns that are not printed: said elsewhere, or long


def run_of(config):
    """The Run of a Config; None where it has not been started, or its folder holds something else."""
    with contextlib.suppress(UserError):
        run = experiment.load(config.path)
        if run.config.training_id == config.training_id:
            return run
    return None


def status_of(config):
    """The status.json of a run as a dict; empty where it has not been started, or its folder holds something else."""
    run = run_of(config)
    return run.status if run else {}


def is_finished(config):
    """Whether the run of a Config is finished."""
    return status_of(config).get("state") == "finished"


def order(one, row):
    """The sort key of a Config or Run and its row: best validation ELBO first, among those that are comparable.

    Of what is comparable as texts, since one may be a number and another one a word.
    """
    return str(one.comparable), math.inf if row["val_elbo"] is None else -row["val_elbo"]


def outcome(run):
    """The columns that say how the training of a Run ended; of None, that it has not been started."""
    if not run:
        return {"state": "none", "val_elbo": None, "best_epoch": None}
    return {"state": run.state, "val_elbo": run.best_val_elbo, "best_epoch": run.status.get("best_epoch")}


def standings(configs, notes):
    """The table of the runs of these Configs, and whether all are finished. `notes`: a dict of Config to text."""
    runs = {config: run_of(config) for config in configs}
    rows = {config: {"run": config.training_id} | outcome(run) for config, run in runs.items()}
    for config, run in runs.items():
        about = run.status.get("note") if run and run.best_val_elbo is not None else ""
        rows[config]["note"] = "; ".join(filter(None, (notes.get(config, "not started"), about)))
    ranked = sorted(configs, key=lambda config: order(config, rows[config]))
    return text.table([rows[config] for config in ranked]), all(row["state"] == "finished" for row in rows.values())


def runs_in(folders):
    """The Runs in these folders, with or without weights; a folder that is no run is skipped."""
    runs = []
    for folder in folders:
        with contextlib.suppress(UserError):  # `experiment.flags.chosen_runs` has warned of it
            runs.append(experiment.load(folder))
    return runs


def report(runs, scores):
    """Prints the ranking of a grid and writes it to its folder, as ranking.csv and, run by run, ranking_runs.csv.

    `runs` are all its Runs, `scores` maps the names of those that were scored to their metrics. Raises UserError if
    the files cannot be written.
    """
    folder, (rows, lines) = runs[0].path.parent, ranking(runs, scores)
    about = f"{', '.join(SCORES)} are of the {rows[0]['split']} split"
    print(f"\nranked by validation ELBO alone ({about}); mean and sample sd over finished seeds")
    print(text.table(shown(rows)))
    if any("val" not in run.config.splits for run in runs):
        print("runs of --validation none have no validation ELBO, and so no rank")
    files = {folder / "ranking.csv": rows, folder / "ranking_runs.csv": lines}
    try:
        for path, content in files.items():
            atomic.write_csv(path, content)
    except OSError as error:
        raise UserError(f"cannot write the ranking to {folder}: {error.strerror or error}") from error
    print(f"written to {' and '.join(map(str, files))}")


def ranking(runs, scores):
    """A row for each group of Runs that differ only in their seed, and a row for each Run: two lists of dicts.

    Both are sorted by rank; ranks start again at 1 where validation ELBOs cannot be compared. Values are in nats per
    image, except bits_per_dim.
    """
    names = [name for name in varying([run.config for run in runs]) if name != "seed"]
    found = [(group, group_row(group, scores, names)) for group in by_seed(runs)]
    rows, lines, ranks = [], [], collections.Counter()
    for group, row in sorted(found, key=lambda pair: order(pair[0][0], pair[1])):
        ranks[group[0].comparable] += 1
        rank = {"rank": None if row["val_elbo"] is None else ranks[group[0].comparable]}
        rows.append(rank | row)
        for run in group:
            score = scores.get(run.name) or {}
            line = {"run": run.name} | settings(run, names) | {"seed": run.config.seed} | outcome(run)
            line |= {name: score.get(name) for name in (*SCORES, *ABOUT)}
            lines.append(rank | line | {"note": (score or run.status).get("note", "")})
    return rows, lines


def by_seed(runs):
    """Lists of the Runs that differ only in their seed, sorted by it. The copy of a folder is in a group of its own."""
    copies = collections.Counter()

    def apart(run):
        same = run.comparable, run.config.training_id
        copies[same] += 1
        return run.comparable, copies[same]

    return groups(sorted(runs, key=lambda run: run.config.seed), "seed", key=apart)


def group_row(group, scores, names):
    """The row of a group: means and sample standard deviations over its finished seeds; of scores, over the scored."""
    finished = [run for run in group if run.state == "finished" and run.status.get("best_epoch") is not None]
    scored = [run for run in finished if run.name in scores]
    columns = {"val_elbo": [run.best_val_elbo for run in finished]}  # scored or not: ranks depend on no score
    columns |= {name: [scores[run.name][name] for run in scored] for name in SCORES}
    row = settings(group[0], names) | {"seeds": len(group), "finished": len(finished), "scored": len(scored)}
    for name, values in columns.items():
        known = [] if None in values else values
        row[name] = statistics.mean(known) if known else None
        row[f"{name}_sd"] = statistics.stdev(known) if len(known) > 1 else None
    notes = dict.fromkeys((scores.get(run.name) or run.status).get("note") for run in group)
    row |= {"split": next(iter(scores.values()))["split"], "runs": "; ".join(run.name for run in group)}
    return row | {"note": "; ".join(filter(None, notes))}


def settings(run, names):
    """The settings of these names as texts with every digit; empty for one that means nothing for this run."""
    values = resolved(run.config, names)
    return {name: "" if values.get(name) is None else text.word(values[name]) for name in names}


def shown(rows):
    """The rows as they are printed: without FILES_ONLY, and without empty columns."""
    kept = [name for name in rows[0] if name not in FILES_ONLY and any(row[name] not in (None, "") for row in rows)]
    return [{name: row[name] for name in kept} | {"seeds": counted(row)} for row in rows]


def counted(row):
    """The number of seeds behind a row: 3, or "2 of 3 finished, 1 scored"."""
    words = [f"{row['finished']} of {row['seeds']} finished"] if row["finished"] < row["seeds"] else []
    if row["scored"] < row["finished"]:
        words.append(f"{row['scored']} scored" if words else f"{row['scored']} of {row['seeds']} scored")
    return ", ".join(words) or row["seeds"]
