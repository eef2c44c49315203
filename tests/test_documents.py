"""Links of the documentation lead to files and headings that exist, and every command has its section."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cli import smpq

ROOT = Path(__file__).parents[1]
PRODUCT = [file for room in ("calib", "smpq", "deploy") for file in sorted((ROOT / room).rglob("*.py"))]
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
    text = (
        "# A heading\n\n[fine](jetson.md#first), [here](#a-heading), [away](https://example.org/no), "
        f"[broken]({target})"
    )
    assert broken_links(ROOT / "docs" / "page.md", text) == [target]


def test_every_command_has_its_section_and_the_doctor_comes_first() -> None:
    sections = re.findall(r"^## smpq ([\w-]+)$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert sections[0] == "doctor"
    assert sorted(sections) == sorted(smpq.commands)


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(named)


def test_every_message_that_is_explained_is_one_that_the_tool_prints() -> None:
    said = " ".join(text for file in PRODUCT for text in messages(file))
    explained = re.findall(r"^- \*\*(.+?)\*\*: ", (ROOT / "docs" / "your-network.md").read_text(), re.MULTILINE)
    assert len(explained) > 20
    assert [message for message in explained if message not in said] == []


def messages(file: Path) -> list[str]:
    """Return the strings of a source file; what a format string puts in is left out."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value for part in node.values if isinstance(part, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


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
