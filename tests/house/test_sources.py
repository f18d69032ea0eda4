# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules about single files, as tests that print file:line and the remedy."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import PACKAGES, ROOT, files, name, report

SPDX = "# SPDX-License-Identifier: GPL-3.0-or-later"
MAX_MODULE_LINES = 450
"""Above about 400 lines a module asks to be looked at again; the rest is room for a change under way."""
MAX_TEST_LINES = 600
"""Tests of one room stay together, with their tables of cases."""
MAX_FUNCTION_LINES = 80
"""Above about 70 lines a function asks to be looked at again."""
HOME_DIRECTORY = re.compile(r"(?<![\w.])/(?:home|root|Users|mnt)/\w")
MARKED_CLOCK = re.compile(r"usefixtures\([^)]*_clock")
SUPPRESSION = re.compile(r"#\s*(?:type:\s*ignore|noqa)[^#]*")


def _scripts() -> Iterator[Path]:
    for path in files("scripts", ".ci"):
        if path.suffix == "" and path.read_bytes().startswith(b"#!"):
            yield path


def test_each_source_file_names_its_licence_at_the_top() -> None:
    def broken() -> Iterator[str]:
        for path in [*files(suffix=".py"), *_scripts()]:
            if SPDX not in path.read_text(encoding="utf-8").splitlines()[:2]:
                yield f"{name(path)}:1: no licence line; put `{SPDX}` at the top (below the #! line)"

    report(broken())


def test_each_module_says_what_it_is_for() -> None:
    def broken() -> Iterator[str]:
        for path in files(*PACKAGES, "scripts", suffix=".py"):
            if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
                yield f"{name(path)}:2: no module docstring; say in a sentence what the module is for"

    report(broken())


def test_no_module_outgrows_its_room() -> None:
    def broken() -> Iterator[str]:
        for limit, roots in ((MAX_MODULE_LINES, (*PACKAGES, "scripts")), (MAX_TEST_LINES, ("tests",))):
            for path in files(*roots, suffix=".py"):
                lines = len(path.read_text(encoding="utf-8").splitlines())
                if lines > limit:
                    yield f"{name(path)}:{lines}: {lines} lines, at most {limit}; is it still one room? split it"

    report(broken())


def test_no_function_outgrows_a_page() -> None:
    def broken() -> Iterator[str]:
        for path in files(*PACKAGES, "scripts", suffix=".py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                    lines = node.end_lineno - node.lineno + 1
                    if lines > MAX_FUNCTION_LINES:
                        yield f"{name(path)}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}; split it"

    report(broken())


def test_tests_have_no_init_files() -> None:
    report(
        f"{name(path)}:1: delete it; tests are found by path (importlib mode)"
        for path in files("tests", suffix="__init__.py")
    )


def test_tests_mirror_the_folders() -> None:
    known = {*PACKAGES, "house", "scripts", "system", "portal", "vectors", "data"}
    report(
        f"{name(path)}:1: no folder of that name in the house; put the tests under one of {sorted(known)}"
        for path in sorted((ROOT / "tests").iterdir())
        if path.is_dir() and path.name not in known and path.name != "__pycache__"
    )


def test_virtual_time_is_asked_for_as_an_argument() -> None:
    """A mark makes the clock and does not use it: the test runs in real time, and nobody sees why it is slow."""
    report(
        f"{name(path)}:{number}: give each test an argument `autojump_clock` instead of a mark"
        for path in files("tests", suffix=".py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MARKED_CLOCK.search(line)
    )


def test_no_path_of_somebodys_machine_is_in_the_tree() -> None:
    def broken() -> Iterator[str]:
        for path in files():
            if path.suffix in {".gz", ".png", ".svg", ".bin"} or path.name == "LICENSE":
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if HOME_DIRECTORY.search(line):
                    yield f"{name(path)}:{number}: a path of one machine; use a path relative to the tree, or ~"

    report(broken())


def test_a_silenced_check_says_why() -> None:
    def broken() -> Iterator[str]:
        for path in files(*PACKAGES, "scripts", suffix=".py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines, 1):
                found = SUPPRESSION.search(line)
                if not found:
                    continue
                says_why = (
                    " -- " in found[0]
                    or "#" in line[found.end() :]
                    or (number > 1 and lines[number - 2].lstrip().startswith("#"))
                )
                if not says_why:
                    yield f"{name(path)}:{number}: a silenced check; solve it, or say on the line above which library forces it"

    report(broken())
