"""The README's table is that of the result files, and a result says what it takes to repeat it."""

import json

import pytest
from conftest import ROOT

import commandline
from benchmarks import paper_table
from experiment import Config

FILES = sorted(paper_table.RESULTS.glob("paper_*.json"))


def test_the_readme_has_the_table_of_the_results():
    readme = (ROOT / "README.md").read_text()
    assert paper_table.with_table(readme) == readme
    assert all(f"`{name}`" in paper_table.table() for name in paper_table.ROWS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_is_of_its_preset_the_whole_test_split_and_all_samples(path):
    result = json.loads(path.read_text())
    settings = result["settings"]
    preset = commandline.preset(result["preset"])
    expected = Config(**(preset.settings | {"seed": settings["seed"]}))
    known = {name: value for name, value in settings.items() if hasattr(expected, name)}
    assert Config(**known).training_id == expected.training_id
    assert path == paper_table.result_file(result["preset"], settings["seed"])
    metrics = result["metrics"]
    assert (metrics["split"], metrics["num_samples"]) == ("test", paper_table.NUM_SAMPLES)
    assert metrics["num_images"] == expected.source.num_images["test"] and result["status"]["state"] == "finished"


def test_rows_without_a_result_say_so_and_have_no_number_of_others_in_our_columns(monkeypatch, tmp_path):
    monkeypatch.setattr(paper_table, "RESULTS", tmp_path)
    for name in paper_table.ROWS:
        cells = paper_table.line(name).strip("| ").split(" | ")
        assert cells[2] == "not run here" and not any(cells[3:-1])


def test_several_seeds_become_mean_and_standard_deviation(monkeypatch, tmp_path):
    monkeypatch.setattr(paper_table, "RESULTS", tmp_path)
    for seed, log_px in enumerate((-85.0, -87.0)):
        metrics = {"log_px": log_px, "log_px_se": 0.01, "bits_per_dim": 0.5, "elbo": -90.0, "rate": 20.0}
        result = {"metrics": metrics, "status": {"seconds": 600.0}, "hardware": "a machine"}
        (tmp_path / f"paper_staticmnist_vae_vamp_seed{seed}.json").write_text(json.dumps(result))
    cells = [cell.strip() for cell in paper_table.line("staticmnist_vae_vamp").split("|")[1:-1]]
    assert cells[1:9] == ["500", "-86.00 ± 1.4", "0.500", "-90.00", "20.00", "2", "10", "a machine"]
