"""docs/tour.ipynb: what it shows is stored without machine paths, and all of it can be executed."""

import json
import re

import pytest
from conftest import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def outputs(notebook):
    """Its outputs, without those of stderr."""
    return [one for cell in notebook["cells"] for one in cell.get("outputs", []) if one.get("name") != "stderr"]


def test_the_tour_has_outputs_without_errors_or_paths_of_a_machine():
    notebook = json.loads(TOUR.read_text())
    kinds = [one["output_type"] for one in outputs(notebook)]
    pictures = [one for one in outputs(notebook) if "image/png" in one.get("data", {})]
    assert len(pictures) == 4 and "error" not in kinds and TOUR.stat().st_size < 1_000_000
    texts = [one["text"] for cell in notebook["cells"] for one in cell.get("outputs", []) if "text" in one]
    said = "".join(line for lines in texts for line in lines)
    assert "test: -" in said and "folder: ../runs/mnist5k_" in said
    assert not re.search(r"(?<!\.)/(home|root|tmp|opt|usr|work|Users)\b", said) and "Warning" not in said


@pytest.mark.slow
def test_the_tour_can_be_executed(tmp_path):
    from benchmarks import tour

    stored = outputs(json.loads(TOUR.read_text()))
    fresh = outputs(tour.stripped(tour.executed(tmp_path)))
    assert [one["output_type"] for one in fresh] == [one["output_type"] for one in stored]
