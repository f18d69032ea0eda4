# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole networks in one process under virtual time, so that a seed replays every fault.

May import every other package of ours; nothing but tests and scripts imports it.
"""
