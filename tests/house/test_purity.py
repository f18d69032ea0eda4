# SPDX-License-Identifier: GPL-3.0-or-later
"""What is agreed is computed from arguments alone: no clock, random source, socket, file or float.

Import contracts (pyproject.toml) forbid the modules; this forbids what needs no import, and says what to do instead.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import files, name, report

AGREED = ("ledger", "consensus", "contracts")
NOT_AGREED = {"contracts/testkit.py"}
"""A test kit: it starts other processes to compare with them."""
DISK = {"ledger/lmdb_environment.py", "ledger/lmdb_store.py"}
"""The store on disk, the only part that may touch files; floats and clocks are forbidden to it as well."""

TIME, RANDOM, FILES = (
    "take the time as an argument (now_ms)",
    "take randomness as an argument (bytes from the caller)",
    "leave files to ledger/lmdb_environment.py or to node/",
)
FORBIDDEN_MODULES = {
    "time": TIME,
    "datetime": TIME,
    "random": RANDOM,
    "secrets": RANDOM,
    "uuid": RANDOM,
    "socket": "leave the network to p2p/",
    "os": FILES,
    "io": FILES,
    "pathlib": FILES,
    "tempfile": FILES,
    "shutil": FILES,
    "threading": "leave threads to node/",
    "logging": "return what happened; node/ writes the log",
    "structlog": "return what happened; node/ writes the log",
}
FORBIDDEN_CALLS = {
    "open": FILES,
    "print": "return what happened; node/ talks to people",
    "input": "take it as an argument",
    "float": "use a fixed-point integer with its unit in the name",
    "hash": "it differs from process to process; use tagged_hash",
    "id": "it differs from process to process; compare values",
}
FLOAT = "floats differ between platforms; use a fixed-point integer with its unit in the name"


def impurities(source: str, *, may_use_files: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the line and the remedy of everything that would make two nodes disagree."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in names:
                remedy = FORBIDDEN_MODULES.get(module.partition(".")[0])
                if remedy and not (may_use_files and remedy == FILES):
                    yield node.lineno, f"imports {module}: {remedy}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            remedy = FORBIDDEN_CALLS.get(node.func.id)
            if remedy and not (may_use_files and remedy == FILES):
                yield node.lineno, f"calls {node.func.id}(): {remedy}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield node.lineno, f"{node.value!r}: {FLOAT}"
        elif isinstance(node, ast.Name) and node.id == "float" and isinstance(node.ctx, ast.Load):
            yield node.lineno, f"float: {FLOAT}"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div) and not may_use_files:
            yield node.lineno, f"`/` yields a float: use // ; {FLOAT}"


def test_nothing_agreed_reads_the_world_or_computes_with_floats() -> None:
    def broken() -> Iterator[str]:
        for path in files(*AGREED, suffix=".py"):
            if name(path) in NOT_AGREED:
                continue
            allowed = name(path) in DISK
            for line, remedy in impurities(path.read_text(encoding="utf-8"), may_use_files=allowed):
                yield f"{name(path)}:{line}: {remedy}"

    report(broken())


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from os import urandom",
        "import random as r",
        "from pathlib import Path",
        "open('x')",
        "weight = 0.5",
        "def f(weight: float) -> int: ...",
        "share = a / b",
        "share /= 3",
        "hash(block)",
    ],
)
def test_the_rule_sees_each_kind_of_impurity(source: str) -> None:
    assert list(impurities(source))


@pytest.mark.parametrize("source", ["share = a // b", "from math import isqrt", "def f(now_ms: int) -> int: ..."])
def test_the_rule_lets_integers_pass(source: str) -> None:
    assert not list(impurities(source))


# ---------------------------------------------------------------- the parts of the import table that a linter cannot say


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def _within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == other or module.startswith(f"{other}.") for other in allowed)


def test_the_primitives_import_nothing_else_of_ours() -> None:
    # Errors are the exception: a second family of errors for the primitives would be worse (docs/decisions/0002).
    report(
        f"{name(path)}:{line}: imports {module}; ledger/crypto may import ledger.crypto and ledger.errors only"
        for path in files("ledger/crypto", suffix=".py")
        for line, module in _imported(path)
        if module.startswith("ledger.") and not _within(module, ("ledger.crypto", "ledger.errors"))
    )


def test_the_network_knows_types_but_neither_state_nor_store() -> None:
    behaviour = ("ledger.transition", "ledger.store", "ledger.lmdb_store", "ledger.memory_store", "ledger.state")
    report(
        f"{name(path)}:{line}: imports {module}; p2p/ carries bytes, node/ knows the state"
        for path in files("p2p", suffix=".py")
        for line, module in _imported(path)
        if _within(module, behaviour)
    )
