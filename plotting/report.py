"""One self-contained HTML page on runs: settings, scores, figures and the commands that repeat them."""

import base64
import dataclasses
import html
import mimetypes
import shlex

import data
from evaluation import estimators
from experiment import own
from experiment.flags import unusual, words_of
from runtime.text import duration, word

SCORES = ("log_px", "elbo", "rate", "distortion", "bits_per_dim")
UNITS = "bits_per_dim in bits, the others in nats per image"
ABOUT = ("split", "num_images", "selection", "estimator", "proposal", "num_samples", "seed", "ess_median", "doubtful")
STYLE = """
:root { color-scheme: light dark; --line: #c8ccd1; --soft: #f3f4f6; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --line: #444b55; --soft: #23272e; --link: #7db8f0; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; } h2 { margin-top: 3rem; border-top: 1px solid var(--line);
  padding-top: 1.5rem; }
a { color: var(--link); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; } th, td { padding: .25rem .7rem .25rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; } td.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
pre { background: var(--soft); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
figure { margin: 1.5rem 0; } figcaption { font-size: .9rem; margin-bottom: .4rem; }
figure img { max-width: 100%; background: #fff; border-radius: 4px; }
summary { cursor: pointer; }
"""
# Nothing is fetched and nothing runs, whatever a name or a note contains
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(runs, drawn, compared):
    """The page as text: of a list of Run, a list of output.Shown for each, and those that compare several runs."""
    title = "Report on one run" if len(runs) == 1 else f"Report on {len(runs)} runs"
    lines = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
    ]
    if len(runs) > 1:
        lines += overview(runs, compared)
    for number, (run, shown) in enumerate(zip(runs, drawn, strict=True)):
        lines += section(number, run, shown)
    return "\n".join([*lines, "</body>\n</html>\n"])


def overview(runs, compared):
    """The lines on all runs together: a table with a link to each run's section, and the figures that compare them."""
    head = ["run", "note", *(name for name in SCORES for name in (name, "±")), "best epoch", "minutes"]
    rows = []
    for number, run in enumerate(runs):
        values = [rounded(run.metrics.get(key)) for name in SCORES for key in (name, f"{name}_se_images")]
        values += [escaped(run.status.get("best_epoch", "")), f"{run.status.get('seconds', 0) / 60:.1f}"]
        rows.append([f'<a href="#run{number}">{escaped(run.name)}</a>', escaped(run.note), *values])
    words = f"{UNITS}; ± is the standard error over images. The section of each run says how it was scored."
    return [table(head, rows, texts=2), f"<p>{words}</p>", *map(figure, compared)]


def section(number, run, shown):
    """The lines on one run."""
    versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
    training = f"{run.state.capitalize()} after {run.status.get('epochs_done', 0)} epochs, in "
    training += f"{duration(run.status.get('seconds', 0))}. The weights are those of epoch "
    which = "best one on the validation images" if "val" in run.config.splits else "last one"
    training += f"{run.status.get('best_epoch', 0)}, the {which}. Commit "
    training += f"{run.record.get('git_commit') or 'unknown'}, on {run.backend}; {versions}."
    lines = [f'<section id="run{number}">', f"<h2>{escaped(run.name)}</h2>", f"<p>{escaped(training)}</p>"]
    if run.note:
        lines.append(f"<p><strong>{escaped(run.note)}</strong></p>")
    lines += ["<h3>Scores</h3>", *scores(run), "<h3>Commands that repeat it</h3>"]
    lines += [f"<pre>{escaped(commands(run))}</pre>", "<h3>Figures</h3>", *map(figure, shown)]
    changed = unusual(run.config)
    others = {name: word(value) for name, value in run.config.settings.items() if name not in changed}
    tables = [table(["setting", "value"], [map(escaped, one) for one in some.items()], 2) for some in (changed, others)]
    default = f"<details><summary>Settings with their default value</summary>\n{tables[1]}\n</details>"
    return [*lines, "<h3>Settings</h3>", tables[0], default, "</section>"]


def scores(run):
    """The lines on the latest scores of a run."""
    metrics = run.metrics
    if not metrics:
        return ["<p>These weights have not been scored; run evaluate.py.</p>"]
    rows = [[name, *(rounded(metrics.get(f"{name}{end}")) for end in ("", "_se", "_se_images"))] for name in SCORES]
    about = {name: metrics[name] for name in ABOUT if metrics.get(name) is not None}
    about |= {"selection": f"first {first} images"} if (first := first_images(run)) else {}
    about = [f"{name} {rounded(value) if isinstance(value, float) else value}" for name, value in about.items()]
    words = f"{', '.join(about)}; {UNITS}"
    return [table(["", "mean", "± estimator", "± images"], rows, texts=1), f"<p>{escaped(words)}</p>"]


def first_images(run):
    """N if the latest scores are of the first N images, which older versions took, and not of all; else None."""
    count, whole = run.metrics.get("num_images"), run.config.source.num_images or {}
    is_old = type(count) is int and "selection" not in run.metrics
    return count if is_old and count != whole.get(str(run.metrics.get("split"))) else None


def commands(run):
    """The shell commands that repeat a run, its scores and this page."""
    commit, _, changes = (run.record.get("git_commit") or "").partition("+")
    moved = run.config.data_set not in data.DATA_SETS  # own images are where their path says, for a new run
    config = dataclasses.replace(run.config, data_dir=None) if moved else run.config
    lines, code = [["python", "train.py", *words_of(config), "--backend", run.backend]], own.words_for(run.config)
    if metrics := run.metrics:
        estimator = metrics.get("estimator")
        flags = estimators.ESTIMATORS[estimator].flags if estimator in [*estimators.ESTIMATORS] else ()
        names = {name: name for name in (*flags, "split", "seed", "backend")} | {"num_images": "max_images"}
        if metrics.get("precision") != run.config.precision:
            names["precision"] = "precision"
        given = {flag: metrics[name] for name, flag in names.items()
                 if isinstance(metrics.get(name), str | int | float)}  # fmt: skip
        words = [word for flag, value in given.items() for word in (f"--{flag}", str(value))]
        lines.append(["python", "evaluate.py", str(run.config.path), "--estimator", str(estimator), *words, *code])
    lines.append(["python", "plot.py", str(run.config.path), "--report", *code])
    said = f"git checkout {shlex.quote(commit)}{'    # with changes that were not committed' * bool(changes)}\n"
    train, *others = map(shlex.join, lines)
    if first := first_images(run):
        train += f"\n# the score is of the first {first} images; --max_images of this version takes {first} random ones"
    return said * bool(commit) + "\n".join([train, *others])


def figure(shown):
    """A figure with its caption; the picture is part of the page."""
    kind, encoded = mimetypes.guess_type(shown.name)[0], base64.b64encode(shown.content).decode()
    caption = escaped(shown.caption)
    picture = f'<img alt="{caption}" src="data:{kind};base64,{encoded}">'
    return f"<figure><figcaption>{caption} <code>{escaped(shown.name)}</code></figcaption>\n{picture}</figure>"


def table(head, rows, texts):
    """A table of HTML, whose first columns are `texts` in HTML; the others are numbers, aligned to the right."""
    lines = ["".join(f"<th>{name}</th>" for name in head)]
    kinds = [""] * texts + [' class="number"'] * (len(head) - texts)
    lines += ["".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    return '<div class="wide"><table>\n' + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table></div>"


def rounded(value):
    """A number of a metrics.json as text with two or four decimals; empty for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def escaped(value):
    """Any value as text of HTML, also inside attributes."""
    return html.escape(str(value))


def write(runs, out):
    """Writes the page on these Runs, with the figures that the output.Output holds, and prints its path."""
    own = [run.path / "figures" for run in runs]
    folder, name = (own[0], runs[0].config.training_id) if len(runs) == 1 else (runs[0].path.parent / "figures", "runs")
    compared = [shown for place, several in out.shown.items() if place not in own for shown in several]
    text = page(runs, [out.shown[place] for place in own], compared)
    out.write(folder, f"{name}_report.html", lambda: text.encode(errors="backslashreplace"))
