# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure functions that all replicas of a run would repeat on the same bytes: computed once, remembered for the others.

A signature check costs 40 µs, and each of n replicas checks the same n votes; with 31 members that is nine tenths of a run. The
functions below depend on their arguments alone, so a remembered answer is the answer. They are replaced by name in the modules that
use them, only while a run lasts: production code knows nothing of it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

from consensus import messages
from ledger import votes
from ledger.crypto import keys, unique_signature

REMEMBERED = 1 << 15
"""Answers kept per function: about one long run of 31 members, 10 MB."""
_PURE: tuple[Callable[..., Any], ...] = (
    keys.verify,
    unique_signature.is_public_key,
    unique_signature.sign,
    unique_signature.verify,
    messages.timeout_digest,
    votes.vote_digest,
)
_ROOTS = frozenset({"ledger", "consensus", "contracts", "simulation"})

_remembering = {function: lru_cache(maxsize=REMEMBERED)(function) for function in _PURE}


@cache
def _places() -> tuple[tuple[dict[str, Any], str, Callable[..., Any]], ...]:
    """Return where the functions are named: namespace, name, function."""
    return tuple(
        (vars(module), name, function)
        for where, module in list(sys.modules.items())
        if where.partition(".")[0] in _ROOTS and where != __name__
        for name, function in list(vars(module).items())
        if any(function is pure for pure in _PURE)
    )


@contextmanager
def remembered() -> Iterator[None]:
    """Let every module of ours that names one of the functions use its remembering twin."""
    places = [place for place in _places() if place[0][place[1]] is place[2]]
    for namespace, name, function in places:
        namespace[name] = _remembering[function]
    try:
        yield
    finally:
        for namespace, name, function in places:
            namespace[name] = function
