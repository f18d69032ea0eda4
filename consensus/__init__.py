# SPDX-License-Identifier: GPL-3.0-or-later
"""Who decides: the committee, its votes, and the sans-IO core that orders batches into blocks.

May import `ledger` and nothing else of ours; time, randomness and keys come in as arguments.
"""
