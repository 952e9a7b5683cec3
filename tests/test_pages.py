"""The README and the guides: what they link to and show is there, and the flags and commands that they name work."""

import re
import shlex

import pytest
from conftest import ROOT

import evaluate
import plot
import train
import vampvae
from evaluation import features
from plotting import comparisons, run_figures
from runtime.command import Parser

README = ROOT / "README.md"
GUIDES = sorted(ROOT.glob("docs/*.md"))
PAGES = [README, *GUIDES, ROOT / "data" / "README.md", ROOT / "benchmarks" / "NOTES.md"]
SCRIPTS = {"train.py": train, "evaluate.py": evaluate, "plot.py": plot, "vampvae.py features": features}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(<?([^)>]+)>?\)")
FLAG = re.compile(r"(?<![\w-])--[a-z]\w+")
COMMAND = re.compile(rf"(?:^|`)python ({'|'.join(map(re.escape, SCRIPTS))}) ([^`#\n]*)", re.MULTILINE)
OTHERS = {"--address", "--head", "--logdir", "--nodes", "--ntasks", "--gpus"}  # of Ray, TensorBoard and Slurm


def links(page):
    """(the ! of a picture, words, where to) of each link of a page, those to the web left out."""
    return [link for link in LINK.findall(page.read_text()) if not link[2].startswith("http")]


def anchors(page):
    """What may stand behind the # of a link to this page: its headings as GitHub spells them, and its own names."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    spelt = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return spelt | set(re.findall(r'<a name="([^"]+)">', text))


def parser_of(script):
    """The parser of one of SCRIPTS."""
    parser = Parser(prog=script)
    SCRIPTS[script].add_arguments(parser)
    return parser


def flags():
    """The flags of the scripts, of `vampvae.py data` and of the benchmarks."""
    of_data = Parser()
    vampvae.add_data_arguments(of_data)
    parsers = [of_data, *map(parser_of, SCRIPTS)]
    found = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    return found | {
        flag
        for file in ROOT.glob("benchmarks/*.py")
        for flag in re.findall(r'add_argument\("(--\w+)"', file.read_text())
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for _, words, target in links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert words and file.is_file(), target
        assert not anchor or anchor in anchors(file), target


def test_every_picture_is_shown_and_no_other():
    shown = {(page.parent / target).resolve() for page in PAGES for picture, _, target in links(page) if picture}
    assert shown == set((ROOT / "img").iterdir())


def test_the_readme_links_every_guide():
    linked = {target for _, _, target in links(README)}
    guides = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".bib", ".ipynb")]
    assert {str(path.relative_to(ROOT)) for path in guides} <= linked


def test_the_site_has_a_place_for_every_guide():
    named = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert {path.name for path in GUIDES} | {"tour.md"} <= set(named) and len(named) == len(set(named))


def test_the_site_has_all_that_pages_link():
    linked = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for *_, target in links(page)}
    names = {path.relative_to(ROOT).as_posix() for path in linked if path.is_file()}
    elsewhere = {name for name in names if not re.fullmatch(r"img/.*|docs/\w+\.(md|bib)", name)}
    known = (ROOT / "docs" / "site.py").read_text()
    assert "docs/tour.ipynb" in elsewhere and all(f'"{name}"' in known for name in elsewhere)


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 12_000


@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda page: page.name)
def test_every_flag_is_one(page):
    assert set(FLAG.findall(page.read_text())) <= flags() | OTHERS


@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda page: page.name)
def test_every_command_is_understood(page, tmp_path, monkeypatch, no_code):
    monkeypatch.chdir(tmp_path)  # with the files that the page writes
    for name, content in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page.read_text(), re.DOTALL):
        (tmp_path / name).write_text(content)
    for script, words in COMMAND.findall(page.read_text()):
        parser_of(script).parse_args([word for word in shlex.split(words) if word != "..."])


def test_there_are_commands_to_try():
    assert sum(len(COMMAND.findall(page.read_text())) for page in [README, *GUIDES]) > 15


def test_where_a_number_comes_from_is_said_to_a_reader():
    for page in [*PAGES, *ROOT.glob("presets/*.toml")]:
        assert "from memory" not in page.read_text(), page


def test_every_figure_is_listed_with_its_caption():
    text = (ROOT / "docs" / "pictures.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", text.partition("## All figures")[2], flags=re.MULTILINE)
    figures = (*run_figures.FIGURES, *comparisons.FIGURES)
    assert listed == [(figure.name, figure.caption.replace("|", "\\|")) for figure in figures]
