# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of a node's API about what patients decide: grants, labels, keys, guardians, emergencies, and the way to proxies."""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from node.api import models
from node.api import sharing_models as answers
from node.http_client import BINARY, MSGPACK, HttpClient, M

_PROXIES_TIMEOUT_S = 20.0
"""The node waits up to ten seconds for each proxy, for all at once."""


class ConsentClient:
    """Asks one node, over the connection of a `NodeClient`."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    # ------------------------------------------------------------------ reads

    def grant(self, grant_id: bytes) -> answers.Grant:
        """Return a grant."""
        return self._http.read(answers.Grant, f"/v1/grants/{grant_id.hex()}")

    def patient_grants(self, patient: bytes) -> Iterator[answers.Grant]:
        """Yield all grants of a patient in the order in which they were made, page by page."""
        start: int | bytes | None = 0
        while isinstance(start, int):
            page = self._http.read(
                answers.Grants, f"/v1/patients/{patient.hex()}/grants", {"start": start, "limit": models.MAX_PAGE}
            )
            yield from page.grants
            start = page.next_start

    def account_grants(self, account: bytes, role: Literal["grantee", "proxy"] = "grantee") -> Iterator[answers.Grant]:
        """Yield the grants that an account may read by, or is a proxy of, page by page."""
        path, start = f"/v1/accounts/{account.hex()}/grants", ""
        while True:
            page = self._http.read(answers.Grants, path, {"role": role, "start": start, "limit": 100})
            yield from page.grants
            if not isinstance(page.next_start, bytes):
                return
            start = page.next_start.hex()

    def emergencies(self, patient: bytes, start: int = 0) -> Iterator[answers.Emergency]:
        """Yield a patient's emergency accesses in order, from a number on, page by page."""
        return self._emergencies(f"/v1/patients/{patient.hex()}/emergencies", start)

    def reviews(self) -> Iterator[answers.Emergency]:
        """Yield the approved emergencies that no patient has called justified, page by page."""
        return self._emergencies("/v1/emergencies/reviews", "")

    def _emergencies(self, path: str, start: int | str | None) -> Iterator[answers.Emergency]:
        while start is not None:
            page = self._http.read(answers.Emergencies, path, {"start": start, "limit": models.MAX_PAGE})
            yield from page.emergencies
            start = page.next_start.hex() if isinstance(page.next_start, bytes) else page.next_start

    def labels(self, patient: bytes, sequence: int) -> answers.Labels:
        """Return the history of a record."""
        return self._http.read(answers.Labels, f"/v1/patients/{patient.hex()}/records/{sequence}/labels")

    def keys(self, patient: bytes) -> tuple[answers.KeyGeneration, ...]:
        """Return all generations of a patient's keys, oldest first."""
        return self._http.read(answers.KeyGenerations, f"/v1/patients/{patient.hex()}/keys").generations

    def guardians(self, patient: bytes) -> answers.Guardians:
        """Return who can give a patient new keys."""
        return self._http.read(answers.Guardians, f"/v1/patients/{patient.hex()}/guardians")

    def delegations(self, patient: bytes) -> tuple[answers.Delegation, ...]:
        """Return who may act for a patient."""
        return self._http.read(answers.Delegations, f"/v1/patients/{patient.hex()}/delegations").delegations

    # ------------------------------------------------------------------ to proxies

    def deliver(self, sealed: Sequence[bytes]) -> tuple[answers.Answer, ...]:
        """Bring sealed key fragments to their proxies; safe to repeat."""
        return self._ask(answers.Answers, "/v1/fragments", msgspec.msgpack.encode(list(sealed)), MSGPACK).answers

    def ask_proxy(self, signed_request: bytes, proxy: bytes) -> answers.Answer:
        """Bring a request to one proxy of its grant."""
        path = f"/v1/reencryptions?proxy={proxy.hex()}"
        (answer,) = self._ask(answers.Answers, path, signed_request, BINARY).answers
        return answer

    def ask_log(self, signed_query: bytes) -> answers.Answer:
        """Bring a query of an access log to the proxy that it names."""
        return self._ask(answers.Answer, "/v1/access-log", signed_query, BINARY)

    def _ask(self, kind: type[M], path: str, content: bytes, headers: dict[str, str]) -> M:
        raw = self._http.send("POST", path, content=content, headers=headers, timeout_s=_PROXIES_TIMEOUT_S)
        return self._http.parse(kind, raw)
