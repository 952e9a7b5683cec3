"""report.py: one page that holds everything, asks for nothing, and takes no word of a run for HTML."""

import base64
import json
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from made import copies

import evaluate
import experiment
import plot
from evaluation import estimators
from experiment import own
from experiment.flags import add_settings, given_settings
from experiment.record import FORMAT
from plotting import report, run_figures, sheets
from plotting.output import Shown
from runtime.command import Parser

PNG = b"\x89PNG picture"
METRICS = {"log_px": -81.234, "log_px_se": 0.00123, "log_px_se_images": 0.5, "elbo": -90.0, "elbo_se_images": 0.25}
METRICS |= {"estimator": "is", "proposal": "fitted", "num_samples": 500, "num_images": 30, "split": "test", "seed": 1}
METRICS |= {"backend": "tensorflow", "rate": None, "selection": "random"}


class Page(HTMLParser):
    """What a page has: its tags with their attributes, those that are open, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def run(tmp_path, metrics=METRICS, note="", **settings):
    """What the page needs of a run."""
    config = experiment.Config(**({"data_set": "digits", "seed": 3} | settings))
    return SimpleNamespace(
        path=tmp_path / config.training_id,
        name=config.training_id,
        config=config,
        metrics=metrics,
        status={"epochs_done": 5, "best_epoch": 4, "seconds": 90.0},
        state="finished",
        record={"versions": {"keras": "3"}, "git_commit": "abc123+changes"},
        backend="jax",
        note=note,
    )


def shown(name="run_samples.png", caption="Samples of it."):
    return Shown(name, caption, PNG)


def test_a_page_has_settings_scores_with_errors_figures_and_commands(tmp_path):
    page = Page(report.page([run(tmp_path)], [[shown(), shown("run_curves.svg")]], []))
    pictures = page.all("img")
    assert [one["alt"] for one in pictures] == ["Samples of it."] * 2
    assert [one["src"].split(",")[0] for one in pictures] == ["data:image/png;base64", "data:image/svg+xml;base64"]
    assert base64.b64decode(pictures[0]["src"].split(",")[1]) == PNG
    for words in ("-81.23", "0.0012", "0.5", "0.25", "seed", "best one on the validation images", "num_images 30"):
        assert words in page.text
    assert "log_px-81.230.00120.5" in page.text  # mean, error of the estimator, over images
    assert page.text.count("log_px") == 1 and "Finished after 5 epochs, in 1 min 30 s" in page.text


def test_a_page_asks_for_nothing_and_runs_nothing(tmp_path):
    page = Page(report.page([run(tmp_path), run(tmp_path, seed=4)], [[shown()], []], [shown()]))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form"}
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources and all(value.startswith(("data:", "#")) for value in sources)
    assert any("default-src 'none'" in one.get("content", "") for one in page.all("meta"))
    assert "url(" not in report.STYLE and "@import" not in report.STYLE and "prefers-color-scheme: dark" in report.STYLE
    identities = {one["id"] for one in page.all("section")}
    assert {one["href"] for one in page.all("a")} == {f"#{name}" for name in identities}


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b </pre>"])
def test_no_word_of_a_run_is_taken_for_html(tmp_path, evil):
    metrics = METRICS | {"log_px": evil, "estimator": evil, "seed": evil, "split": evil, "elbo": [evil]}
    one = run(tmp_path, metrics, note=evil, gs_key=None, data_dir=evil)
    one.record = {"versions": {"keras": evil}, "git_commit": evil}
    one.name = evil
    page = Page(report.page([one, one], [[shown(evil + ".png", evil)], []], []))
    assert not page.all("script") and len(page.all("img")) == 1 and "onerror" not in page.all("img")[0]
    assert evil in page.text


@pytest.mark.parametrize(
    "words",
    [
        ("--num_samples", "50", "--seed", "2"),
        ("--proposal", "posterior"),
        ("--target_se", "0.5", "--max_samples", "70"),
        ("--estimator", "quadrature"),
        ("--estimator", "ais", "--start", "prior"),
    ],
)
def test_the_commands_ask_for_the_same_again(tmp_path, words):
    parser = Parser()
    evaluate.add_arguments(parser)

    shallow = SimpleNamespace(path="a run", config=experiment.Config(), precision="float32", latent_dim=2)

    def scoring(flags):
        args = parser.parse_args(["run", *flags])
        own = {name: getattr(args, name) for name in estimators.OWNERS}
        return estimators.Scoring.of(shallow, args.estimator, args.seed, None, **own)

    one = scoring(words)
    metrics = METRICS | one.settings | {"estimator": one.estimator, "seed": one.seed}
    train, score, plotted = report.commands(run(tmp_path, metrics, model="hvae", lr=1e-3)).splitlines()[1:]
    again = scoring(shlex.split(score)[3:])
    assert again.settings | {"bracket": None} == one.settings | {"bracket": None} and again.seed == one.seed
    parser = Parser()
    add_settings(parser)
    given = given_settings(parser.parse_args(shlex.split(train)[2:-2]))
    same = {name: value[0] if isinstance(value, list) else value for name, value in given.items()}
    assert experiment.Config(**same).training_id == run(tmp_path, model="hvae", lr=1e-3).name
    assert plotted.endswith("--report")


def test_the_commands_name_the_files_of_own_classes(tmp_path, no_code):
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    one = run(tmp_path, prior=own.name_of("prior", f"{tmp_path}/mine.py:Mine"))
    _, *others = report.commands(one).splitlines()[1:]
    assert all(line.endswith(f" --code {os.path.relpath(tmp_path / 'mine.py')}") for line in others)


@pytest.mark.parametrize(("trained", "asks"), [("float32", False), ("mixed_bfloat16", True)])
def test_the_commands_ask_for_another_precision_than_that_of_the_training(tmp_path, trained, asks):
    text = report.commands(run(tmp_path, METRICS | {"precision": "float32"}, precision=trained))
    assert ("--precision float32" in text.splitlines()[-2]) == asks


@pytest.mark.parametrize(
    ("more", "first"),
    [({}, 30), ({"selection": "random"}, 0), ({"num_images": 300}, 0), ({"num_images": "30\nrm -r *"}, 0)],
)
def test_scores_of_the_first_images_say_so(tmp_path, more, first):
    one = run(tmp_path, {name: value for name, value in METRICS.items() if name != "selection"} | more)
    said = (
        "# the score is of the first 30 images; --max_images of this version takes 30 random ones\npython evaluate.py "
    )
    assert (said in report.commands(one)) == bool(first) and report.commands(one).count("first") == bool(first)
    assert ("selection first 30 images" in Page(report.page([one], [[]], [])).text) == bool(first)


def test_a_score_by_what_is_no_estimator_is_shown(tmp_path):
    page = Page(report.page([run(tmp_path, {"estimator": ["is"], "log_px": -3.0})], [[]], []))
    assert "-3.00" in page.text


def test_a_run_without_scores_says_so(tmp_path):
    page = Page(report.page([run(tmp_path, {})], [[]], []))
    assert "run evaluate.py" in page.text and "python evaluate.py" not in page.text


def test_plot_writes_a_page_of_one_run_and_of_several(tmp_path, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.setattr(sheets, "SHEET_PIXELS", (300, 300))
    runs = copies(tmp_path_factory)
    paths = [str(runs[name]) for name in ("standard2", "vamp2")]
    assert plot.main([paths[0], "--report", "--figures", "samples", "--format", "svg"]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written[-1].endswith("_report.html") and written[-1].startswith(paths[0])
    page = Page(Path(written[-1]).read_text())
    assert [one["alt"] for one in page.all("img")] == [
        figure.caption for figure in run_figures.FIGURES if figure.name == "samples"
    ]

    words = [*paths, "--report", "--figures", "samples", "curves", "--out", str(tmp_path / "out")]
    assert plot.main(words) == 0
    page = Page((tmp_path / "out" / "runs_report.html").read_text())
    assert len(page.all("img")) == 3 and len(page.all("section")) == 2
    for words in (["--report"], ["--format", "svg"]):
        assert plot.main([*paths, *words, "--export", "npz"]) == 2
        assert f"--export npz does not go with {words[0]}, because it draws no figures" in capsys.readouterr().err


def test_metrics_of_other_weights_or_damaged_ones_are_none(tmp_path):
    config = experiment.Config(data_set="digits", runs_dir=str(tmp_path))
    config.path.mkdir(parents=True)
    record = {"format": FORMAT, "config": vars(config), "backend": "jax", "versions": {}, "data_sha256": {}}
    (config.path / "config.json").write_text(json.dumps(record | {"git_commit": None}))
    one = experiment.load(config.path)
    assert one.metrics == {}
    one.weights.write_bytes(b"weights")
    for content, expected in (
        (json.dumps({"weights_sha256": one.weights_sha256, "log_px": -3}), -3),
        (json.dumps({"weights_sha256": "another", "log_px": -3}), None),
        ("[1, 2", None),
    ):
        (config.path / "metrics.json").write_text(content)
        assert one.metrics.get("log_px") == expected


def test_the_page_has_no_word_that_needs_a_network():
    assert not re.search(r"https?:|//", report.STYLE.replace("/*", ""))
