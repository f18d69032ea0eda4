# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP API under /v1: a thin, bounded and typed shell around `node.service`."""
