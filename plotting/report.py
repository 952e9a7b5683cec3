"""One self-contained HTML page on runs: settings, scores, figures and the commands that repeat them."""

import base64
import html
import shlex

from evaluation import estimators
from experiment.flags import unusual, words_of
from runtime.text import duration

SCORES = ("log_px", "elbo", "rate", "distortion", "bits_per_dim")
ABOUT = ("split", "num_images", "estimator", "proposal", "num_samples", "seed", "ess_median", "doubtful")
TYPES = {"png": "image/png", "svg": "image/svg+xml"}
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
    """The page as text. Args: runs, a list of Run; drawn, a list of output.Shown for each; compared, those of several
    runs."""
    title = "Report on one run" if len(runs) == 1 else f"Report on {len(runs)} runs"
    sections = [section(number, run, shown) for number, (run, shown) in enumerate(zip(runs, drawn, strict=True))]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{escaped(title)}</h1>",
            *(overview(runs, compared) if len(runs) > 1 else []),
            *sections,
            "</body>\n</html>\n",
        ]
    )


def overview(runs, compared):
    """The lines on all runs together: a table with a link to each run's section, and the figures that compare them."""
    head = ["run", "note", *(name for name in SCORES for name in (name, "±")), "best epoch", "minutes"]
    rows = []
    for number, run in enumerate(runs):
        values = [rounded(run.metrics.get(key)) for name in SCORES for key in (name, f"{name}_se_images")]
        status = [run.status.get("best_epoch", ""), f"{run.status.get('seconds', 0) / 60:.1f}"]
        link = f'<a href="#run{number}">{escaped(run.name)}</a>'
        rows.append([link, escaped(run.note), *map(number_cell, [*values, *status])])
    words = "In nats per image; ± is the standard error over images. The section of each run says how it was scored."
    return [table(head, rows), f"<p>{words}</p>", *map(figure, compared)]


def section(number, run, shown):
    """The part of the page on one run."""
    lines = [f'<section id="run{number}">', f"<h2>{escaped(run.name)}</h2>", f"<p>{escaped(history_of(run))}</p>"]
    if run.note:
        lines.append(f"<p><strong>{escaped(run.note)}</strong></p>")
    lines += [
        "<h3>Scores</h3>",
        *scores(run),
        "<h3>Commands that repeat it</h3>",
        f"<pre>{escaped(commands(run))}</pre>",
    ]
    lines += ["<h3>Figures</h3>", *map(figure, shown), "<h3>Settings</h3>", settings(run), "</section>"]
    return "\n".join(lines)


def history_of(run):
    """A paragraph on how a run was trained."""
    versions = ", ".join(f"{name} {version}" for name, version in run.record["versions"].items())
    epochs, seconds = run.status.get("epochs_done", 0), run.status.get("seconds", 0)
    return (
        f"{run.state.capitalize()} after {epochs} epochs, in {duration(seconds)}. The weights are those of epoch "
        f"{run.status.get('best_epoch', 0)}, the best one on the validation images. Commit "
        f"{run.record.get('git_commit') or 'unknown'}, on {run.backend}; {versions}."
    )


def scores(run):
    """The lines on the latest scores of a run."""
    metrics = run.metrics
    if not metrics:
        return ["<p>These weights have not been scored; run evaluate.py.</p>"]
    rows = []
    for name in SCORES:
        values = [rounded(metrics.get(key)) for key in (name, f"{name}_se", f"{name}_se_images")]
        rows.append([escaped(name), *map(number_cell, values)])
    about = ", ".join(f"{name} {said_of(metrics[name])}" for name in ABOUT if metrics.get(name) is not None)
    units = "bits_per_dim in bits, the others in nats per image"
    head = ["", "mean", "± Monte Carlo", "± images"]
    return [table(head, rows), f"<p>{escaped(f'{about}; {units}')}</p>"]


def settings(run):
    """Two tables of settings: those that were changed, and those with their default value."""
    changed = unusual(run.config)
    others = {name: value for name, value in run.config.settings.items() if name not in changed}
    tables = [table(["setting", "value"], [[escaped(n), escaped(v)] for n, v in some.items()])
              for some in (changed, others)]  # fmt: skip
    return f"{tables[0]}\n<details><summary>Settings with their default value</summary>\n{tables[1]}\n</details>"


def commands(run):
    """The shell commands that repeat a run, its scores and this page."""
    commit, _, changes = (run.record.get("git_commit") or "").partition("+")
    backend, lines = ["--backend", run.backend], []
    lines.append(["python", "train.py", *words_of(run.config), *backend])
    if run.metrics:
        lines.append(["python", "evaluate.py", str(run.config.path), *scoring(run.metrics)])
    lines.append(["python", "plot.py", str(run.config.path), "--report"])
    said = f"git checkout {shlex.quote(commit)}{'    # with changes that were not committed' * bool(changes)}\n"
    return said * bool(commit) + "\n".join(map(shlex.join, lines))


def scoring(metrics):
    """The flags of evaluate.py that made these metrics."""
    estimator = metrics.get("estimator")
    flags = estimators.ESTIMATORS[estimator].flags if estimator in [*estimators.ESTIMATORS] else ()
    names = {name: name for name in (*flags, "split", "seed", "backend")} | {"num_images": "max_images"}
    given = [(flag, metrics[name]) for name, flag in names.items() if isinstance(metrics.get(name), str | int | float)]
    words = ["--estimator", str(estimator)]
    return words + [word for flag, value in given for word in (f"--{flag}", str(value))]


def figure(shown):
    """A figure with its caption; the picture is part of the page."""
    kind = shown.name.rpartition(".")[2]
    data = base64.b64encode(shown.content).decode()
    caption = escaped(shown.caption)
    picture = f'<img alt="{caption}" src="data:{TYPES[kind]};base64,{data}">'
    return f"<figure><figcaption>{caption} <code>{escaped(shown.name)}</code></figcaption>\n{picture}</figure>"


def table(head, rows):
    """A table of cells of HTML; those that begin with <td are taken as they are."""
    lines = ["".join(f"<th>{escaped(name)}</th>" for name in head)]
    lines += ["".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) for row in rows]
    return '<div class="wide"><table>\n' + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table></div>"


def number_cell(value):
    """A cell of a table, aligned to the right."""
    return f'<td class="number">{escaped(value)}</td>'


def rounded(value):
    """A number of a metrics.json as text with two or four decimals; empty for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def said_of(value):
    """A value of a metrics.json as text: floats `rounded`, anything else as it is."""
    return rounded(value) if isinstance(value, float) else value


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
