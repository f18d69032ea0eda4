# SPDX-License-Identifier: GPL-3.0-or-later
"""What need not be on the chain: the off-chain contract layer.

Machines, the execution of requests, the operator that commits batches and the watcher that re-executes them; all of it without
clock, network and disk; `node.offchain` gives it these. It may import `ledger` and nothing else of ours.
"""
