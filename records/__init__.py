# SPDX-License-Identifier: GPL-3.0-or-later
"""The medical domain: FHIR bundles, envelopes, and the blobs that carry them encrypted.

May import `ledger` and nothing else of ours.
"""
