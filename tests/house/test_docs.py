# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents agree with the tree: generated pages are fresh, links lead somewhere, every page can be reached."""

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

from scripts.generate_docs import stale_pages
from tests.house.tree import ROOT, files, name, report

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
CODE = re.compile(r"```.*?```", re.DOTALL)


def _pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *files("docs", suffix=".md")]


def _links(page: Path) -> Iterator[tuple[str, str]]:
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as code hosts make them."""
    headings = HEADING.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_generated_pages_are_fresh() -> None:
    report(f"{page.as_posix()}: stale; run scripts/docs and commit the result" for page in stale_pages())


def test_each_link_leads_to_a_file_and_a_heading_that_exist() -> None:
    def broken() -> Iterator[str]:
        for page in _pages():
            for path, anchor in _links(page):
                target = (page.parent / path).resolve() if path else page
                if not target.exists():
                    yield f"{name(page)}: links to {path}, which is not there; mend the link"
                elif anchor and target.suffix == ".md" and anchor not in _anchors(target):
                    yield f"{name(page)}: links to {path}#{anchor}, but no heading makes that anchor; mend the link"

    report(broken())


def test_each_page_can_be_reached_from_the_index() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        waiting += [(page.parent / path).resolve() for path, _ in _links(page) if path]
    report(
        f"{name(page)}: no page links to it; add it to docs/index.md or delete it"
        for page in files("docs", suffix=".md")
        if page not in reached
    )


def test_the_scripts_that_the_documents_name_exist() -> None:
    def broken() -> Iterator[str]:
        for page in _pages():
            for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
                for script in re.findall(r"(?<![\w/])(scripts/[\w./-]*\w)", line):
                    if not (ROOT / script).exists():
                        yield f"{name(page)}:{number}: names {script}, which is not there"

    report(broken())


def test_the_changelog_knows_the_current_version() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    version = setup["metadata"]["version"]
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in {"Unreleased", version}
    assert version in headings


def test_decisions_are_numbered_without_gaps_and_have_the_three_parts() -> None:
    records = sorted(path for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    report(
        f"{name(path)}: has no section `## {part}`"
        for path in records
        for part in ("Context", "Decision", "Consequences")
        if f"\n## {part}\n" not in path.read_text(encoding="utf-8")
    )
