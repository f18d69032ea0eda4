# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit finds what is not pure, and the example of the documentation is a sound machine, as are those that ship."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.machine import MAX_ENTRIES_PER_OPERATION, Context, Machine, Outcome, View, done
from contracts.machines import SHIPPED
from contracts.testkit import Step, account, check_machine, check_run, impurities
from ledger.codec import Uint, Wire, encode
from ledger.offchain import Deposit
from tests.contracts import kit
from tests.vectors.offchain import HISTORIES

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-contract.md"


Load = Callable[[str, str], ModuleType]


class Note(Wire, frozen=True):
    """Parameters and operation of the machines below."""

    number: Uint
    """Any number."""


Rules = Callable[[View, Context[Note], Note], Outcome]


def machine_of(apply: Rules) -> Machine[Note, Note]:
    return Machine("sample", 1, Note, Note, apply)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from random import choice",
        "x = 0.5",
        "def f(a, b): return a / b",
        "def f(a):\n    a /= 2",
        "hash(b'x')",
        "open('x')",
        "KNOWN = {}",
        "KNOWN: list[int] = []",
        "for item in {1, 2}: pass",
        "x = {i for i in range(3)}",
        "x = set()",
        "def f():\n    global x\n    x = 1",
        "assert True",
        "try:\n    pass\nexcept ValueError:\n    pass",
        "async def f(): pass",
        "x = (1).__class__",
        "eval('1')",
        "import math\ndef f(a): return str(math.sin(a))",
        "from math import sqrt",
        "import math as isqrt",
        "def f(a): return str(2 ** -a)",
        "def f(a): return 2 ** a",
        "def f(a, b):\n    a **= b",
    ],
)
def test_each_kind_of_impurity_is_seen(source: str) -> None:
    assert list(impurities(source))


@pytest.mark.parametrize(
    "source",
    [
        "from math import isqrt",
        "import math\nx = math.gcd(4, 6) + 2 ** 31",
        "x = 7 // 2",
        "def f(a): return a in {1, 2}",
        "TABLE = (1, 2)",
        "import msgspec",
    ],
)
def test_what_is_pure_passes(source: str) -> None:
    assert not list(impurities(source))


# ---------------------------------------------------------------- trying

STEPS = [Step(1, 5, Note(number)) for number in range(4)]


def test_a_machine_that_remembers_something_beside_the_view_is_found() -> None:
    seen: list[int] = []

    def apply(view: View, context: Context[Note], operation: Note) -> Outcome:
        seen.append(operation.number)
        view.put(b"count", encode(len(seen)))
        return done()

    with pytest.raises(AssertionError, match="executed again"):
        check_run(machine_of(apply), Note(0), STEPS)


def broken(view: View, context: Context[Note], operation: Note) -> Outcome:
    return done(bytes([operation.number * 100]))


def greedy(view: View, context: Context[Note], operation: Note) -> Outcome:
    for number in range(MAX_ENTRIES_PER_OPERATION + 1):
        view.put(b"k%d" % number, b"")
    return done()


def large(view: View, context: Context[Note], operation: Note) -> Outcome:
    view.put(b"k", bytes(1025))
    return done()


def talkative(view: View, context: Context[Note], operation: Note) -> Outcome:
    return done(bytes(65))


@pytest.mark.parametrize(
    ("apply", "code"),
    [
        (broken, "machine_failed"),
        (greedy, "too_many_entries"),
        (large, "entry_too_large"),
        (talkative, "machine_failed"),
    ],
)
def test_mistakes_and_limits_are_found(apply: Rules, code: str) -> None:
    with pytest.raises(AssertionError, match=code):
        check_run(machine_of(apply), Note(0), STEPS)


SEED_SOURCE = """
from contracts.machine import Machine, done
from ledger.codec import Uint, Wire


class Note(Wire, frozen=True):
    number: Uint


def apply(view, context, operation):
    for letter in dict.fromkeys(("a", "b", "c", "d", "e")).keys() | ("f",):
        view.put(b"last", letter.encode())
    return done()


SEEDED = Machine("seeded", 1, Note, Note, apply)
"""


@pytest.fixture
def module_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Return a function that imports a source under a name."""
    names: list[str] = []
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        names.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def test_a_machine_that_depends_on_the_seed_of_pythons_hash_is_found(module_of: Load) -> None:
    # The union of dict keys is a set that no reading of the source shows.
    module = module_of("seeded_machine", SEED_SOURCE)
    with pytest.raises(AssertionError, match="PYTHONHASHSEED"):
        check_machine(module.SEEDED, module.Note(0), [[Step(1, 5, module.Note(1))]])


def test_the_example_of_the_documentation_is_a_sound_machine(module_of: Load) -> None:
    machine, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert 50 <= len(machine.splitlines()) <= 75, "about 60 lines, as promised"
    module_of("waiting_room", machine)
    module_of("test_waiting_room", test).test_the_waiting_room_is_a_sound_machine()


@pytest.mark.parametrize("machine", SHIPPED, ids=lambda machine: machine.name)
def test_the_machines_that_ship_are_sound_also_in_other_processes(machine: Machine[Any, Any]) -> None:
    history = HISTORIES[machine.name]
    run = [Step(user, 2_000, operation) for user, operations in history for operation in operations]
    check_machine(machine, kit.PARAMETERS[machine.name], [run, run[::-1], []])


steps = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400)), max_size=15)


@pytest.mark.parametrize("machine", SHIPPED, ids=lambda machine: machine.name)
@given(steps, st.data())
@settings(max_examples=25)
def test_the_machines_that_ship_are_sound_whatever_is_sent(
    machine: Machine[Any, Any], drawn: list[tuple[int, int]], data: st.DataObject
) -> None:
    now_ms, run = 500, []
    for actor, wait_ms in drawn:
        now_ms += wait_ms
        is_deposit = actor == 0 and machine.payable is not None
        operation = Deposit(account(1), 700) if is_deposit else data.draw(kit.OPERATIONS[machine.name])
        run.append(Step(actor, now_ms, operation))
    check_run(machine, kit.PARAMETERS[machine.name], run)
