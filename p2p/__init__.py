# SPDX-License-Identifier: GPL-3.0-or-later
"""How peers meet and talk: a thin wrapper over py-libp2p.

May import `ledger` (types only) and nothing else of ours.
"""
