"""The tables of docs/results.md are those of the result files, and a result says what it takes to repeat it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import bounds_table, deep_table, paper_table, priors_table, priors_tour, results_page
from experiment import Config, presets
from experiment.presets import preset
from runtime.errors import UserError

FILES = sorted(paper_table.RESULTS.glob("paper_*.json"))


@pytest.mark.parametrize(
    "module, rows",
    [
        (paper_table, [f"| `{name}` |" for name in paper_table.ROWS]),
        (bounds_table, [f"| `{row}` |" for row in bounds_table.ROWS]),
        (priors_table, ["**staticmnist, 2 latents.**", "**staticmnist, 40 latents.**", "| `flow` |", "| `lars` |"]),
        (deep_table, [f"| `{name}`" for name in deep_table.ROWS] + ["| independent pixels, mnist |"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_page_has_the_table_of_the_results(module, rows):
    text = results_page.PAGE.read_text()
    assert results_page.replaced(text, f"{module.__name__.removeprefix('benchmarks.')}.py", module.table()) == text
    assert all(row in module.table() for row in rows)


def test_the_tour_of_priors_has_its_results():
    text = priors_tour.PAGE.read_text()
    assert results_page.replaced(text, "priors_tour.py", priors_tour.part()) == text
    assert all(f"| `{prior}` |" in text for prior in priors_tour.PRIORS)


@pytest.mark.parametrize("module", [paper_table, priors_table], ids=lambda module: module.__name__)
def test_the_readme_has_the_best_rows(module):
    text = results_page.README.read_text()
    assert results_page.replaced(text, f"{module.__name__.removeprefix('benchmarks.')}.py", module.best()) == text


def test_a_part_without_a_place_is_refused():
    marked = "a\n<!-- benchmarks/x.py writes from here -->\nold\n<!-- benchmarks/x.py wrote to here -->\nb\n"
    assert results_page.replaced(marked, "x.py", "new").splitlines()[2:5] == ["", "new", ""]
    for text in ("", marked + marked, marked.replace("wrote", "wrought")):
        with pytest.raises(ValueError, match=r"not one place for benchmarks/x\.py"):
            results_page.replaced(text, "x.py", "new")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_is_of_its_preset_the_whole_test_split_and_all_samples(path):
    result = json.loads(path.read_text())
    settings = result["settings"]
    preset = presets.preset(result["preset"])
    expected = Config(**(preset.settings | {"seed": settings["seed"]}))
    known = {name: value for name, value in settings.items() if hasattr(expected, name)}
    assert Config(**known).training_id == expected.training_id
    assert path == paper_table.result_file(result["preset"], settings["seed"])
    assert result["status"]["state"] == "finished"
    for name, samples in (("metrics", 5000), ("fitted", 500)):
        if metrics := result.get(name):
            assert (metrics["split"], metrics["num_samples"], metrics["note"]) == ("test", samples, "")
            assert metrics["num_images"] == expected.source.num_images["test"]
    assert "metrics" in result or "fitted" in result


def test_rows_without_a_result_say_so_and_have_no_number_of_others_in_our_columns(monkeypatch, tmp_path):
    monkeypatch.setattr(paper_table, "RESULTS", tmp_path)
    for name in paper_table.ROWS:
        cells = paper_table.cells_of(name)
        assert len(cells) == len(paper_table.HEADER) and cells[0] == f"`{name}`" and cells[2] == "not run here"
        assert not any(cells[3:8]) and cells[8] == preset(name).expected and not any(cells[9:])


def test_several_seeds_become_mean_and_standard_deviation(monkeypatch, tmp_path):
    monkeypatch.setattr(paper_table, "RESULTS", tmp_path)
    for seed, log_px in enumerate((-85.0, -87.0)):
        metrics = {"log_px": log_px, "log_px_se": 0.01, "bits_per_dim": 0.5, "elbo": -90.0}
        metrics |= {"active_units": [20 + seed, 7], "units": [40, 40], "ess_median": 12.0}
        fitted = metrics | {"log_px": log_px + 1, "doubtful": 3 + seed, "num_images": 9}
        result = {"metrics": metrics, "fitted": fitted, "status": {"seconds": 600.0}}
        result |= {"hardware": "a machine", "backend": "jax"}
        (tmp_path / f"paper_staticmnist_vae_vamp_seed{seed}.json").write_text(json.dumps(result))
    cells = paper_table.cells_of("staticmnist_vae_vamp")
    assert cells[:6] == ["`staticmnist_vae_vamp`", 500, "-86.00 ± 1.4", "-85.00 ± 1.4", "3.5 of 9", "-90.00"]
    assert cells[6:8] == ["20.5 + 7 of 80", "12"] and cells[9:] == [2, "jax", "10", ("a machine",)]


def test_what_was_not_scored_is_left_empty(monkeypatch):
    result = json.loads(paper_table.result_file("staticmnist_vae_vamp", 0).read_text())
    monkeypatch.setattr(paper_table, "results_of", lambda name: [result])
    whole = paper_table.cells_of("staticmnist_vae_vamp")
    del result["fitted"]
    assert paper_table.cells_of("staticmnist_vae_vamp") == [*whole[:3], "", "", *whole[5:]]


def test_a_row_names_where_it_was_scored_if_that_was_elsewhere():
    rows = [{"backend": "jax", "metrics": {"backend": scored}} for scored in ("tensorflow", "jax")]
    assert paper_table.backends(rows[:1]) == "jax, tensorflow" and paper_table.backends(rows[1:]) == "jax"


def test_a_machine_is_named_once_below_a_table():
    seeds = results_page.machines_of([{"hardware": "there"}, {"hardware": "here"}, {"hardware": "there"}])
    rows = [["x", ("here",)], ["y", ""], ["z", ("there",)], ["w", seeds]]
    lines = results_page.table(("row", "hardware"), "lr", rows).splitlines()
    assert lines[:2] == ["| row | hardware |", "|---|---:|"]
    assert lines[2:] == ["| x | a |", "| y |  |", "| z | b |", "| w | a, b |", "", "Hardware a: here; b: there."]


def test_a_score_of_other_weights_is_none(monkeypatch, tmp_path):
    run = SimpleNamespace(path=tmp_path, weights_sha256="new", images=lambda split: [0] * 30)
    for tag, _ in paper_table.SCORES.values():
        assert not paper_table.is_scored(run, tag)
        file = tmp_path / "evaluations" / f"test_{tag}_N30.json"
        file.parent.mkdir(exist_ok=True)
        for found, expected in (("old", False), ("new", True)):
            file.write_text(json.dumps({"weights_sha256": found}))
            assert paper_table.is_scored(run, tag) is expected
        file.write_text("half a fil")
        assert not paper_table.is_scored(run, tag)


def test_a_result_on_other_data_is_refused(monkeypatch, tmp_path):
    config = Config(**(preset("staticmnist_vae_vamp").settings | {"runs_dir": str(tmp_path)}))
    config.path.mkdir(parents=True)
    run = SimpleNamespace(path=config.path, note="other data", backend="jax")
    monkeypatch.setattr(paper_table, "RESULTS", tmp_path)
    monkeypatch.setattr(paper_table, "call", lambda *words: None)
    monkeypatch.setattr(paper_table.experiment, "load", lambda path: run)
    args = SimpleNamespace(runs_dir=tmp_path, backend=None, score_backend=None, hardware="a machine")
    with pytest.raises(SystemExit, match="other data; such a result has no place in the table"):
        paper_table.produce("staticmnist_vae_vamp", 0, args)
    assert not paper_table.result_file("staticmnist_vae_vamp", 0).exists()


def test_a_row_of_bounds_says_what_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(paper_table, "RESULTS", tmp_path)
    costs = {"elbo": {"seconds": 0.02, "mib": 800.0}, "iwae5": {"seconds": 0.05, "mib": 912.4}}
    scored = {
        "log_px": -85.5,
        "log_px_se": 0.02,
        "bits_per_dim": 0.1,
        "elbo": -90.0,
        "active_units": [20],
        "units": [50],
    }
    result = {"fitted": scored, "status": {"seconds": 120.0}, "hardware": "a machine"}
    (tmp_path / "paper_bounds_iwae5_seed0.json").write_text(json.dumps(result))
    cells = bounds_table.cells_of("iwae5", costs)
    assert cells[:5] == ["`iwae5`", "-85.50 ± 0.02", "-90.00", "20 of 50", "0.050"]
    assert cells[5:7] == ["2.5", "912"] and cells[8:] == ["2", ("a machine",)]
    cells = bounds_table.cells_of("elbo", {})
    assert cells[1] == "not run here" and not any([*cells[2:7], *cells[8:]])


def test_priors_are_compared_seed_by_seed_and_seeds_have_a_spread(monkeypatch, tmp_path):
    monkeypatch.setattr(priors_table, "RESULTS", tmp_path)
    assert priors_table.cells_of("staticmnist", 2, "mog", {}) == [] and priors_table.best() == "| prior |\n|---|"
    metrics = {"doubtful": 1, "elbo": -141.0, "rate": 6.0, "marginal_kl": 0.9, "distances": {"fid": 3.0}}

    def put(prior, seed, log_px, used, images="these", **differences):
        found = metrics | {"log_px": log_px, "components_in_use": used, "images_sha256": images}
        about = {"status": {"seconds": 60.0}, "hardware": "a machine", "settings": {"seed": seed, "prior": prior}}
        path = priors_table.result_file("staticmnist", 2, prior, seed)
        path.write_text(json.dumps(about | {"metrics": found, "differences": differences}))

    def cells():
        return priors_table.cells_of("staticmnist", 2, "mog", {"mog": 1.25})

    put("standard", 0, -135.5, None)
    put("mog", 0, -135.0, 400, standard=[0.5, 0.1])
    assert cells()[:4] == ["`mog`", "-135.00", "+0.50 ± 0.1", ""]
    put("mog", 1, -134.0, 402)  # before the others had this seed
    assert cells()[:4] == ["`mog`", "-134.50 ± 0.71", "", ""]
    put("standard", 1, -134.7, None)
    for seed in (0, 1):
        put("vamp", seed, -134.5, 300, images="these" if seed == 0 else "others")
    assert cells()[:4] == ["`mog`", "-134.50 ± 0.71", "+0.60 ± 0.14", ""]
    put("vamp", 1, -133.3, 300)
    assert cells()[:4] == ["`mog`", "-134.50 ± 0.71", "+0.60 ± 0.14", "-0.60 ± 0.14"]
    assert cells()[4:] == ["1", "-141.00", "6.00", "0.90", "3.00", "401", "1.25", 2, "1.0", ("a machine",)]
    assert len(cells()) == len(priors_table.HEADER) and "| `mog` | +0.60 ± 0.14 |" in priors_table.best()
    assert priors_table.cells_of("staticmnist", 2, "vamp", {})[3] == ""
    assert priors_table.cells_of("staticmnist", 2, "standard", {})[2:4] == ["", ""]


def test_hardware_that_is_not_stated_is_that_of_the_result_of_the_same_weights(tmp_path):
    path, run = tmp_path / "x.json", SimpleNamespace(weights_sha256="mine")
    assert results_page.hardware_of(path, run, "not stated") == "not stated"
    path.write_text(json.dumps({"hardware": "two cores", "fitted": {"weights_sha256": "mine"}, "backend": "jax"}))
    assert results_page.hardware_of(path, run, "not stated") == "two cores"
    assert results_page.hardware_of(path, run, "a GPU") == "a GPU"
    assert results_page.hardware_of(path, SimpleNamespace(weights_sha256="other"), "not stated") == "not stated"


def test_rows_of_two_machines_do_not_share_a_heading(tmp_path):
    path = tmp_path / "x.json"
    results_page.check_same(path, {"hardware": "here"})
    path.write_text(json.dumps({"hardware": "here", "rows": []}))
    results_page.check_same(path, {"hardware": "here"})
    with pytest.raises(SystemExit, match="has rows of hardware here, and these would be of there: move it away first"):
        results_page.check_same(path, {"hardware": "there"})


def test_a_score_is_known_again_by_its_weights_and_its_estimator(monkeypatch):
    metrics = json.loads(priors_table.result_file("staticmnist", 40, "exemplar", 0).read_text())["metrics"]
    tag, comma, network = metrics["tag"].partition("_F")
    assert comma
    monkeypatch.setattr(priors_table.Scoring, "of", lambda run: SimpleNamespace(tag=tag))
    run = SimpleNamespace(weights_sha256=metrics["weights_sha256"], metrics=metrics)
    assert priors_table.is_scored(run)
    for change in ({"tag": tag}, {"tag": f"is_S5000_F{network}"}, {"weights_sha256": "those"}):
        run.metrics = metrics | change
        assert not priors_table.is_scored(run)
    run.metrics = None
    assert not priors_table.is_scored(run)


def test_differences_are_those_from_the_bases(monkeypatch):
    def run(prior, *log_px, images="these"):
        stored = SimpleNamespace(log_px=np.float64(log_px))
        said = {"config": SimpleNamespace(prior=prior), "name": prior, "metrics": {"images_sha256": images}}
        return SimpleNamespace(evaluation=lambda split: stored, **said)

    monkeypatch.setattr(priors_table, "facts", lambda run, hardware: {"hardware": hardware})
    vamp = run("vamp", -2, -4, -3)
    found = priors_table.collected(vamp, {"standard": run("standard", -3, -4, -5), "vamp": vamp}, "a machine")
    assert found["differences"] == {"standard": [1.0, pytest.approx(1 / np.sqrt(3))]}
    assert found["metrics"] == vamp.metrics and found["hardware"] == "a machine"
    with pytest.raises(UserError, match="vamp and standard were not scored on the same images"):
        priors_table.collected(vamp, {"standard": run("standard", -3, -4, -5, images="those")}, "a machine")
