# SPDX-License-Identifier: GPL-3.0-or-later
"""The process: configuration, composition, mempool, sync, HTTP API and command line.

Wires the other packages together; only `simulation` may import it.
"""
