# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry that every node of a network runs with."""

from contracts.machines import SHIPPED
from contracts.registry import Registry

MACHINES = Registry(SHIPPED)
"""All machines that come with the program. Nodes that disagree about it disagree about who is guilty: it changes with the version only."""
