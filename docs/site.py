"""What mkdocs.yml adds to the guides: the README as the first page, pages of other folders, and the pictures."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "data/README.md": "data.md", "benchmarks/NOTES.md": "notes.md"}
LINK = re.compile(r"(\]\(<?)([^)>#:]*)")  # ends where an anchor begins; links to the web have a colon


def on_files(files, config):
    """Adds PAGES and img/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for picture in (ROOT / "img").iterdir():
        files.append(File.generated(config, f"img/{picture.name}", abs_src_path=str(picture)))
    files.append(File.generated(config, "CITATION.cff", abs_src_path=str(ROOT / "CITATION.cff")))
    return files


def on_page_markdown(markdown, page, **_):
    """Rewrites links, which are relative to the file in the repository, to where these are on the site."""
    source = {page: source for source, page in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = (ROOT / source).parent

    def moved(link):
        path = link[2] and (folder / link[2]).resolve().relative_to(ROOT).as_posix()
        return link[1] + PAGES.get(path, path.removeprefix("docs/"))

    return LINK.sub(moved, markdown)
