# SPDX-License-Identifier: GPL-3.0-or-later
"""Composed cryptographic primitives; imports nothing else of ours."""
