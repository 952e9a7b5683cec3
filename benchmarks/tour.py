"""Executes docs/tour.ipynb and keeps its outputs, without progress bars and paths: python benchmarks/tour.py

Needs requirements-dev.txt. It trains in a temporary folder, so from the beginning.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
# in lines of bars, or about them
BAR = re.compile(r"it/s|images?/s|epoch .* left|TqdmWarning|from \.autonotebook|^\s*$")


def executed(folder):
    """The notebook with the outputs of its cells, executed in folder/docs. Raises CellExecutionError if one fails."""
    notebook = nbformat.read(TOUR, nbformat.NO_CONVERT)
    (place := Path(folder, "docs")).mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # as .. is not the clone there
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}})
    client.execute(env=environment)
    return notebook


def stripped(notebook):
    """The notebook without what differs by machine: bars, times of cells, versions."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell["id"], cell.metadata = f"cell{number}", {}
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                lines = re.split(r"[\r\n]+", output.text)
                output.text = "".join(f"{line}\n" for line in lines if not BAR.search(line))
        if cell.cell_type == "code":
            kept = [one for one in cell.outputs if one.output_type != "display_data"]  # a bar of ipywidgets
            cell.outputs = []
            for one in (one for one in kept if one.get("text", "some")):
                if cell.outputs and "name" in one and cell.outputs[-1].get("name") == one.name:
                    cell.outputs[-1].text += one.text  # as they are only apart in time
                else:
                    cell.outputs.append(one)
    return notebook


def main():
    folder = tempfile.mkdtemp()
    try:
        nbformat.write(stripped(executed(folder)), TOUR)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
