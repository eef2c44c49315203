"""Links of the documentation lead to files and headings that exist, and every command has its section."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli import smpq

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document, document.read_text()) == []


@pytest.mark.parametrize(
    "target", ["no.md", "#no-heading", "jetson.md#no-heading", "schemas", "../../README.md", "/docs/jetson.md"]
)
def test_a_link_that_leads_nowhere_is_found(target: str) -> None:
    text = f"# A heading\n\n[fine](jetson.md#first), [here](#a-heading), [away](https://example.org/no), [broken]({target})"
    assert broken_links(ROOT / "docs" / "page.md", text) == [target]


def test_every_command_has_its_section_and_the_doctor_comes_first() -> None:
    sections = re.findall(r"^## smpq ([\w-]+)$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert sections[0] == "doctor"
    assert sorted(sections) == sorted(smpq.commands)


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(named)


def broken_links(document: Path, text: str) -> list[str]:
    """Return the links that lead to no file of the repository, or to no heading of it."""
    targets = [match["target"] for match in _LINK.finditer(_FENCE.sub("", text))]
    return [
        target
        for target in targets
        if not re.match(r"https?://", target) and not _leads_somewhere(document, text, target)
    ]


def _leads_somewhere(document: Path, text: str, target: str) -> bool:
    path, _, heading = target.partition("#")
    if path.startswith("/"):
        return False
    file = (document.parent / path).resolve()
    if path and not (file.is_relative_to(ROOT) and file.is_file()):
        return False
    return not heading or heading in anchors(file.read_text() if path else text)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, of those that a repository's page and the built site call alike."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {word.replace(" ", "-") for word in words if word.replace(" ", "-") == re.sub(r"[-\s]+", "-", word)}
