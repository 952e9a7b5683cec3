"""The rooms of the project: which may import which, without circles, and how large files and functions may grow."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = ("train", "evaluate", "plot", "vampvae")
MAY_IMPORT = {  # each room, and the rooms below it (docs/architecture.md has the picture)
    "runtime": set(),
    "models": set(),
    "data": {"runtime"},
    "experiment": {"runtime", "models", "data"},
    "evaluation": {"runtime", "models", "data", "experiment"},
    "grids": {"runtime", "models", "data", "experiment"},
    "plotting": {"runtime", "models", "data", "experiment", "evaluation", "grids"},
    "training": {"runtime", "models", "data", "experiment", "evaluation", "grids", "plotting"},
}
MAY_IMPORT |= {script: set(MAY_IMPORT) for script in SCRIPTS[:3]}
MAY_IMPORT["vampvae"] = MAY_IMPORT["train"] | set(SCRIPTS[:3])
MAY_IMPORT["benchmarks"] = MAY_IMPORT["vampvae"] | {"vampvae"}
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in MAY_IMPORT
    for path in ([ROOT / f"{room}.py"] if room in SCRIPTS else (ROOT / room).rglob("*.py"))
}
MOST_LINES, MOST_IN_FUNCTION, MOST_IN_ALL = 400, 40, 18_070


def imported(source, module):
    """The modules of ours that the source of a module imports, wherever in it: dotted names of SOURCES."""
    package = module if SOURCES.get(module, Path()).name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in SOURCES else base for alias in node.names}
    return found & set(SOURCES)


def upward(module, source):
    """The modules of other rooms that a source imports although its room may not."""
    room = module.split(".")[0]
    return {other for other in imported(source, module) if other.split(".")[0] not in MAY_IMPORT[room] | {room}}


@pytest.mark.parametrize("module", SOURCES)
def test_a_room_imports_from_the_rooms_below_it_only(module):
    assert not upward(module, SOURCES[module].read_text())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("models.vae", "from runtime import backend"),
        ("experiment.run", "def f():\n    import evaluation.score"),
        ("evaluation.score", "from plotting.style import PALETTE"),
        ("plotting.style", "import training.fit"),
        ("plotting.explorer.page", "from benchmarks import results_page"),
        ("train", "import plot"),
    ],
)
def test_a_reversed_arrow_is_found(module, source):
    assert len(upward(module, source)) == 1


def test_no_modules_import_one_another_in_a_circle():
    arrows = {module: imported(path.read_text(), module) - {module} for module, path in SOURCES.items()}
    while removable := {module for module, below in arrows.items() if not below & set(arrows)}:
        arrows = {module: below for module, below in arrows.items() if module not in removable}
    assert not arrows  # what is left is in a circle, or above one


def test_four_scripts_stand_at_the_top():
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted(SCRIPTS)


def test_packages_import_no_keras_before_it_is_needed():
    for module, path in SOURCES.items():
        if path.name == "__init__.py":
            names = {alias.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import)
                     for alias in node.names}  # fmt: skip
            assert not names & {"keras", "tensorflow", "jax"}, module


def test_the_whole_source_stays_small():
    """What an addition costs is seen in the commit that raises the limit."""
    lines = {module: path.read_text().count("\n") for module, path in SOURCES.items()}
    assert sum(count for module, count in lines.items() if not module.startswith("benchmarks")) <= MOST_IN_ALL


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith("benchmarks")])
def test_files_and_functions_stay_short(module):
    source = SOURCES[module].read_text()
    assert source.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            documentation = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert node.end_lineno - node.lineno + 1 - documentation <= MOST_IN_FUNCTION, node.name
