# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all tests."""

from pathlib import Path

import pytest

REAL_TIME = ("node", "p2p", "system")
"""Folders whose tests run real nodes against the real clock."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that run in real time a second try, which the closing line counts as `rerun`.

    A machine that stalls for seconds while it runs thousands of them breaks one now and then, whatever its limits; a fault of ours
    fails twice. What is pure, simulated or seeded gets no second try.
    """
    folders = [Path(__file__).parent / name for name in REAL_TIME]
    for item in items:
        if any(folder in item.path.parents for folder in folders):
            item.add_marker(pytest.mark.flaky(reruns=1))
