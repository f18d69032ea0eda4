# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks a machine of yours: `check_machine` raises `AssertionError` with the place and the remedy, or says nothing.

R1 Pure by reading: the module that defines the rules imports nothing but what is pure, has no floats, no `/`, no globals that change, no
   sets, no assertions (they vanish under -O) and no `try` (it could swallow a limit).
R2 Pure by trying: executed again, on entries that came into memory in another order, on trees rebuilt from proofs, and in other
   processes with other seeds of Python's hash, a run gives the same outcomes and the same root.
R3 Within limits: no operation fails by a mistake in the machine or reaches a limit, so each can be challenged.

What to try is up to you. A *run* is a list of steps: who acts (0 for the chain, else any number up to 255), at which time, and the
operation.
"""

import ast
import hashlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from contracts.execution import ENTRY_TOO_LARGE, FAILED, MALFORMED, TOO_HEAVY, TOO_MANY_ENTRIES, BoundMachine, execute
from contracts.machine import Machine, Outcome
from contracts.registry import Registry
from contracts.requests import CheckedRequest
from contracts.state_map import StateMap
from ledger.codec import encode
from ledger.crypto.hashing import Tag, tagged_hash
from ledger.crypto.keys import PrivateKey
from ledger.offchain import CHAIN, ContractTerms, Place
from ledger.partial_tree import PartialTree

ALLOWED_MODULES = frozenset({"collections", "contracts", "dataclasses", "enum", "ledger", "math", "msgspec", "typing"})
"""What a machine may import; of `math` only `INTEGER_MATH`."""
INTEGER_MATH = frozenset({"comb", "factorial", "gcd", "isqrt", "lcm", "perm"})
"""Functions that make integers of integers. The others' floats come from the platform's library, and could leave the rules as text."""
FORBIDDEN_CALLS = {
    "compile": "rules stand in the source",
    "eval": "rules stand in the source",
    "exec": "rules stand in the source",
    "float": "use integers with their unit in the name",
    "frozenset": "its order differs from process to process; use a tuple or a dict",
    "getattr": "name what you mean",
    "globals": "all state is in the view",
    "hash": "it differs from process to process; use tagged_hash",
    "id": "it differs from process to process; compare values",
    "input": "all input is the operation and the context",
    "open": "all state is in the view",
    "print": "return it as the outcome's result",
    "set": "its order differs from process to process; use a tuple or a dict",
    "setattr": "all state is in the view",
    "vars": "all state is in the view",
}
HASH_SEEDS = ("0", "1", "4242")
"""Seeds of Python's hash for the other processes; each costs the start of an interpreter."""
PROCESS_SECONDS = 120
"""How long another process may take: a machine that hangs is a mistake."""


class Step(NamedTuple):
    """One operation of a run."""

    actor: int
    """0 for the chain, else a number that stands for an account."""
    time_ms: int
    """Time of its request; does not fall from step to step."""
    operation: object
    """A struct of the machine, or its encoding."""


def account(actor: int) -> bytes:
    """Return the address that an actor's number stands for."""
    return CHAIN if actor == 0 else tagged_hash(Tag.ADDRESS, b"contracts.testkit", bytes([actor]))[:20]


def check_machine(machine: Machine[Any, Any], parameters: object, runs: Sequence[Sequence[Step]]) -> None:
    """Check all requirements. For a machine that can be imported by the name of its module."""
    source = inspect.getsourcefile(machine.apply)
    assert source is not None, f"no source of {machine.name}"
    problems = [f"{source}:{line}: {remedy}" for line, remedy in impurities(Path(source).read_text(encoding="utf-8"))]
    assert not problems, "\n".join(problems)
    digests = [check_run(machine, parameters, run) for run in runs]
    for seed in HASH_SEEDS:
        found = _elsewhere(machine, parameters, runs, seed)
        assert found == digests, (
            f"{machine.name}: another process, with PYTHONHASHSEED={seed}, comes to another result: something beside the "
            "view and the arguments decides"
        )


def impurities(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and remedy of all in a module that could make two nodes disagree (R1)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, _import(name)) for name in names if not _is_allowed(name))
            yield from ((node.lineno, _FLOAT_MATH) for _ in _float_math(node))
        elif isinstance(node, ast.stmt):
            yield from ((node.lineno, remedy) for kinds, remedy in _STATEMENTS if isinstance(node, kinds))
            if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
                yield node.lineno, "`/=` yields a float: use //="
            if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Pow):
                yield node.lineno, _POWER
        else:
            yield from ((line, remedy) for line, remedy in _in_expression(tree, node))
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp):
            yield statement.lineno, "a global that can change: use a tuple, or the view"
        if isinstance(statement, ast.AugAssign):
            yield statement.lineno, "a global that changes: all state is in the view"


_STATEMENTS: tuple[tuple[tuple[type[ast.stmt], ...], str], ...] = (
    ((ast.Global, ast.Nonlocal), "all state is in the view"),
    ((ast.Assert,), "assertions vanish under -O: refuse the operation instead"),
    ((ast.Try, ast.TryStar), "a `try` could swallow a limit: ask before you do, and refuse"),
    ((ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith), "a machine waits for nothing"),
)


_FLOAT_MATH = f"math has floats: take only {', '.join(sorted(INTEGER_MATH))} of it, by these names"
_POWER = "`**` yields a float when the exponent is negative: write the exponent as a number, or use <<"


def _in_expression(tree: ast.AST, node: ast.AST) -> Iterator[tuple[int, str]]:
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
            yield node.lineno, f"calls {name}(): {FORBIDDEN_CALLS[name]}"
        case ast.Constant(value=float() | complex()):
            yield node.lineno, f"{node.value!r}: use integers with their unit in the name"
        case ast.BinOp(op=ast.Div()):
            yield node.lineno, "`/` yields a float: use //"
        case ast.BinOp(op=ast.Pow(), right=power) if not isinstance(power, ast.Constant):
            yield node.lineno, _POWER
        case ast.Attribute(value=ast.Name(id="math"), attr=name) if name not in INTEGER_MATH:
            yield node.lineno, _FLOAT_MATH
        case ast.Set() | ast.SetComp() if not _is_membership(tree, node):
            yield node.lineno, "the order of a set differs from process to process; use a tuple or a dict"
        case ast.Attribute(attr=name) if name.startswith("__"):
            yield node.lineno, f"{name}: name what you mean"


def _float_math(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield what an import takes of `math` that may give floats; under another name all of it may."""
    if isinstance(node, ast.ImportFrom):
        yield from (alias.name for alias in node.names if node.module == "math" and alias.name not in INTEGER_MATH)
    else:
        yield from (alias.name for alias in node.names if alias.name == "math" and alias.asname not in (None, "math"))


def _is_allowed(module: str) -> bool:
    return module.partition(".")[0] in ALLOWED_MODULES


def _import(module: str) -> str:
    return f"imports {module}: a machine may import {', '.join(sorted(ALLOWED_MODULES))} only"


def _is_membership(tree: ast.AST, wanted: ast.AST) -> bool:
    """Tell whether a set serves for `in` only, where its order does not show."""
    return any(isinstance(node, ast.Compare) and wanted in node.comparators for node in ast.walk(tree))


def check_run(machine: Machine[Any, Any], parameters: object, run: Iterable[Step]) -> str:
    """Execute a run in every way that nodes do (R2 without the other processes, R3); returns a digest of all that came out."""
    bound = _bind(machine, parameters if isinstance(parameters, bytes) else encode(parameters))
    live, log = StateMap(), hashlib.sha256()
    numbers: dict[int, int] = {}
    for index, step in enumerate(run):
        raw = step.operation if isinstance(step.operation, bytes) else encode(step.operation)
        first = numbers.get(step.actor, 0)
        numbers[step.actor] = first + 1
        request = CheckedRequest(bytes(32), b"", account(step.actor), first, (raw,))
        place = Place(0, index, step.time_ms, step.actor == 0)
        executed = execute(bound, place, request, live)
        _check_outcome(machine, index, executed.outcomes[0])
        reordered = StateMap(reversed(list(live.entries())))
        rebuilt = PartialTree(live.root(), live.witness(executed.touched))
        for name, state in (("executed again", live), ("in another order", reordered), ("on proofs", rebuilt)):
            again = execute(bound, place, request, state)
            assert again == executed, f"{machine.name}: step {index} {name} comes to {again}, not {executed}"
        live.apply(executed.replay.changes)
        for key, value in executed.replay.changes:
            rebuilt.delete(key) if value is None else rebuilt.put(key, value)
        assert rebuilt.root() == live.root(), f"{machine.name}: step {index} on proofs has another root"
        log.update(encode(executed.outcomes) + live.root())
    return log.hexdigest()


def _bind(machine: Machine[Any, Any], parameters: bytes) -> BoundMachine:
    operator = PrivateKey(tagged_hash(Tag.ADDRESS, b"contracts.testkit: operator")).public_key
    return Registry([machine]).bind(ContractTerms(bytes(32), machine.name, machine.version, parameters, operator))


def _check_outcome(machine: Machine[Any, Any], index: int, outcome: Outcome) -> None:
    remedies = {
        FAILED: "the rules raise an error or give an unsound outcome: refuse what cannot be done",
        MALFORMED: "the operation does not decode: a run is made of operations",
        ENTRY_TOO_LARGE: "keys have 1 to 63 bytes and values at most 1024: name things by digests",
        TOO_MANY_ENTRIES: "an operation touches at most 16 entries: bound its lists",
        TOO_HEAVY: "the entries are too large to be proved together: make them smaller",
    }
    assert outcome.code not in remedies, (
        f"{machine.name}: step {index} is refused as {outcome.code}: {remedies[outcome.code]}"
    )


# ---------------------------------------------------------------- other processes


_PROGRAM = """
import sys, importlib, msgspec
from contracts import testkit
module, name, version, parameters, runs = msgspec.msgpack.decode(sys.stdin.buffer.read())
testkit.main(importlib.import_module(module), name, version, parameters, runs)
"""


def _elsewhere(machine: Machine[Any, Any], parameters: object, runs: Sequence[Sequence[Step]], seed: str) -> list[str]:
    encoded = [
        [
            (step.actor, step.time_ms, step.operation if isinstance(step.operation, bytes) else encode(step.operation))
            for step in run
        ]
        for run in runs
    ]
    task = encode([machine.apply.__module__, machine.name, machine.version, encode(parameters), encoded])
    environment = {
        **os.environ,
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=task,
        capture_output=True,
        env=environment,
        check=False,
        timeout=PROCESS_SECONDS,
    )
    assert done.returncode == 0, f"{machine.name} in another process: {done.stderr.decode(errors='replace')}"
    return done.stdout.decode().split()


def main(module: object, name: str, version: int, parameters: bytes, runs: list[list[tuple[int, int, bytes]]]) -> None:
    """Execute runs in this process and print their digests; the other end of `check_machine`."""
    machine = next(
        value
        for value in vars(module).values()
        if isinstance(value, Machine) and (value.name, value.version) == (name, version)
    )
    for run in runs:
        sys.stdout.write(check_run(machine, parameters, [Step(*step) for step in run]) + "\n")
