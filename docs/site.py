"""What mkdocs.yml adds to the guides: the README as first page, pages of other folders, the notebook, the pictures."""

import re
from pathlib import Path

from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "data/README.md": "data.md", "benchmarks/NOTES.md": "notes.md"}
PAGES |= {"docs/tour.ipynb": "tour.md"}
FILES = ("CITATION.cff", "data/registry.txt")  # that pages link
LINK = re.compile(r"(\]\(<?)([^)>#:]*)")  # ends where an anchor begins; links to the web have a colon


def on_files(files, config):
    """Adds PAGES, with the pictures of notebooks, FILES, and img/."""
    for source, page in PAGES.items():
        if source.endswith(".ipynb"):
            text, resources = MarkdownExporter().from_filename(ROOT / source)
            made = {page: text} | resources["outputs"]
        else:
            made = {page: (ROOT / source).read_text()}
        for name, content in made.items():
            files.append(File.generated(config, name, content=content))
    for name in (*FILES, *(f"img/{picture.name}" for picture in (ROOT / "img").iterdir())):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, **_):
    """Rewrites links, which are relative to the file in the repository, to where these are on the site."""
    source = {page: source for source, page in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = (ROOT / source).parent

    def moved(link):
        path = link[2] and (folder / link[2]).resolve().relative_to(ROOT).as_posix()
        return link[1] + PAGES.get(path, path.removeprefix("docs/"))

    return LINK.sub(moved, markdown)
