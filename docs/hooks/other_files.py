"""Adds to the site what pages link to outside of docs/: three Markdown files become pages, other files are copied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[2]
_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages of the repository's root that are pages of the site too."""
_OUTSIDE = re.compile(r"(?<=\]\()\.\./(?P<path>[\w./-]+)")
_DOCS = re.compile(r"(?<=\]\()docs/")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of the root, and every file that a page links to."""
    texts = {page: (_ROOT / page).read_text() for page in _PAGES}
    for page, text in texts.items():
        files.append(File.generated(config, _place(page), content=_DOCS.sub("", text)))
    for path in sorted({path for page in files.documentation_pages() for path in _linked(page)} - set(_PAGES)):
        if (_ROOT / path).is_file():  # a missing one is left to the check of links
            files.append(File.generated(config, _place(path), abs_src_path=str(_ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to files outside of docs/ at their places on the site."""
    return _OUTSIDE.sub(lambda match: _place(match["path"]), markdown)


def _linked(page: File) -> Iterator[str]:
    yield from (match["path"] for match in _OUTSIDE.finditer(page.content_string))


def _place(path: str) -> str:
    return path.lower() if path in _PAGES else f"repository/{path}"
