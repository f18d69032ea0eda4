# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all tests."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine shared with other work is slow now and then; a deadline would measure that. In CI, examples are drawn without chance.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

REAL_TIME = ("node", "p2p", "system")
"""Folders whose tests run real nodes against the real clock."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that run in real time two more tries, which the closing line counts as `rerun`.

    A machine that stalls for seconds while it runs thousands of them breaks one now and then, whatever its limits; a fault of ours
    shows every time. What is pure, simulated or seeded has one try.
    """
    folders = [Path(__file__).parent / name for name in REAL_TIME]
    for item in items:
        if any(folder in item.path.parents for folder in folders):
            item.add_marker(pytest.mark.flaky(reruns=2))
