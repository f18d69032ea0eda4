# SPDX-License-Identifier: GPL-3.0-or-later
"""A proxy's answer, and how a reader makes m good ones out of whatever the proxies say.

The answer carries the proxy's signed entry of its access log: what was done is written down, or it does not leave. The entry binds the
capsule fragments by a digest, so an answer with a wrong fragment is the proof against who gave it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from ledger.codec import Wire, decoder, encode
from ledger.crypto.reencryption import CAPSULE_FRAGMENT_BYTES, VerifiedCapsuleFragment, verify_capsule_fragment
from ledger.errors import InvalidInput
from ledger.sharing import Grant, grant_id
from records.access_entries import SignedEntry, fragments_digest, is_entry_signed
from records.requests import MAX_REQUEST_RECORDS, RefusalReason, SignedRequest, request_digest

MAX_ANSWER_BYTES = 32 * 1024
"""The largest answer has 64 fragments of 384 bytes and an entry of 1 KB."""

CapsuleFragmentBytes = Annotated[
    bytes, msgspec.Meta(min_length=CAPSULE_FRAGMENT_BYTES, max_length=CAPSULE_FRAGMENT_BYTES)
]


class ProxyAnswer(Wire, frozen=True):
    """What a proxy answers to a request."""

    entry: SignedEntry
    """The entry of its access log: what was asked, and whether and why not."""
    fragments: Annotated[tuple[CapsuleFragmentBytes, ...], msgspec.Meta(max_length=MAX_REQUEST_RECORDS)]
    """A capsule fragment for each record of the request, in order; none when it is refused."""


class FaultKind(StrEnum):
    """In which way a proxy has failed a reader."""

    UNREACHABLE = "unreachable"
    """No answer came."""
    MALFORMED = "malformed"
    """The answer cannot be decoded."""
    BAD_SIGNATURE = "bad_signature"
    """The answer is not signed by the proxy."""
    OTHER_REQUEST = "other_request"
    """The answer is about something else."""
    INCONSISTENT = "inconsistent"
    """The entry says one thing and the fragments another."""
    BAD_FRAGMENT = "bad_fragment"
    """A capsule fragment does not verify: the proxy lies."""
    OTHER_GRANT = "other_grant"
    """The fragments are genuine, but of another grant than those of m proxies that agree."""
    SAME_FRAGMENT = "same_fragment"
    """Two proxies used one key fragment: one of them has given it away or has copied an answer. Both are named."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a proxy did wrong."""

    proxy: bytes
    """Its address."""
    kind: FaultKind
    """In which way."""
    detail: str
    """For people: what exactly."""
    answer: bytes = b""
    """What it sent, as evidence; empty when nothing came."""


@dataclass(frozen=True, slots=True)
class _Good:
    """An answer whose fragments all verified and come from one key fragment."""

    proxy: bytes
    fragments: tuple[VerifiedCapsuleFragment, ...]
    raw: bytes

    @property
    def fragment_id(self) -> bytes:
        return self.fragments[0].fragment_id


class Collection:
    """Collects the answers of a grant's proxies to one request until m fit together. Sans-IO; the caller talks to the proxies."""

    def __init__(
        self,
        chain_id: bytes,
        signed: SignedRequest,
        grant: Grant,
        delegating_key: bytes,
        proxy_keys: Mapping[bytes, bytes],
    ) -> None:
        """Begin.

        Args:
            chain_id: the chain.
            signed: the request that goes to every proxy.
            grant: the grant that it names, from the chain.
            delegating_key: the patient's re-encryption key of the grant's generation, from the chain.
            proxy_keys: account key of each of the grant's proxies, from the chain.
        """
        assert signed.request.grant_id == grant_id(grant.terms), "the request names another grant"
        self._chain_id = chain_id
        self._request = signed.request
        self._digest = request_digest(chain_id, signed.request)
        self._grant = grant
        self._delegating_key = delegating_key
        self._proxy_keys = {proxy: proxy_keys[proxy] for proxy in grant.terms.proxies}
        self._waiting = list(grant.terms.proxies)
        self._asked: set[bytes] = set()
        self._groups: dict[bytes, dict[bytes, _Good]] = {}
        self.refusals: dict[bytes, RefusalReason] = {}
        """Proxies that have refused, and why."""
        self.faults: list[Fault] = []
        """What proxies did wrong, in the order in which it was found."""

    def is_complete(self) -> bool:
        """Tell whether m answers fit together."""
        return len(self._best()) >= self._grant.terms.threshold

    def ask(self) -> tuple[bytes, ...]:
        """Return the proxies to ask now; they count as asked until `add` or `fail` is called for them.

        First m of them, then one more for each that was of no use.
        """
        missing = self._grant.terms.threshold - len(self._best()) - len(self._asked)
        chosen = self._waiting[: max(0, missing)]
        del self._waiting[: len(chosen)]
        self._asked.update(chosen)
        return tuple(chosen)

    def fail(self, proxy: bytes, detail: str) -> None:
        """Note that a proxy has not answered."""
        self._settle(proxy)
        self.faults.append(Fault(proxy, FaultKind.UNREACHABLE, detail))

    def add(self, proxy: bytes, raw: bytes) -> bool:
        """Take a proxy's answer; tell whether it was of use. Whatever is wrong with it stands in `faults` or `refusals`."""
        self._settle(proxy)
        try:
            good = self._check(proxy, raw)
        except _Faulty as fault:
            self.faults.append(Fault(proxy, fault.kind, str(fault), raw))
            return False
        if good is None:
            return False
        for group in self._groups.values():
            if good.fragment_id in group:
                self._name_both(group[good.fragment_id], good)
                return False
        self._groups.setdefault(good.fragments[0].precursor, {})[good.fragment_id] = good
        if self.is_complete():
            self._name_others()
        return True

    def fragments(self, sequence: int) -> tuple[VerifiedCapsuleFragment, ...]:
        """Return m verified capsule fragments of a requested record; only when complete."""
        assert self.is_complete(), "too few answers; look at is_complete first"
        place = [record.sequence for record in self._request.records].index(sequence)
        return tuple(good.fragments[place] for good in self._best().values())[: self._grant.terms.threshold]

    @property
    def helpers(self) -> tuple[bytes, ...]:
        """The proxies whose answers fit together."""
        return tuple(good.proxy for good in self._best().values())

    def explain(self) -> str:
        """Say in a sentence how many answers were of use and what became of the others: for people."""
        useful = f"{len(self._best())} of {self._grant.terms.threshold} proxies needed have re-encrypted"
        others = [f"{proxy.hex()} refused: {reason.value}" for proxy, reason in self.refusals.items()]
        others += [f"{fault.proxy.hex()} failed: {fault.kind.value} ({fault.detail})" for fault in self.faults]
        return "; ".join([useful, *others])

    def _best(self) -> dict[bytes, _Good]:
        return max(self._groups.values(), key=len, default={})

    def _settle(self, proxy: bytes) -> None:
        assert proxy in self._asked, f"{proxy.hex()} was not asked, or has answered"
        self._asked.remove(proxy)

    def _check(self, proxy: bytes, raw: bytes) -> _Good | None:
        """Return the verified answer, or None for a refusal, which is noted."""
        try:
            answer = decode_answer(raw)
        except InvalidInput as error:
            raise _Faulty(FaultKind.MALFORMED, str(error)) from error
        entry = answer.entry.entry
        if not is_entry_signed(self._chain_id, answer.entry, self._proxy_keys[proxy]):
            raise _Faulty(FaultKind.BAD_SIGNATURE, "the answer is not signed by the proxy")
        wanted = tuple(record.sequence for record in self._request.records)
        if (entry.proxy, entry.request_digest, entry.records) != (proxy, self._digest, wanted):
            raise _Faulty(FaultKind.OTHER_REQUEST, "the answer is about another request")
        if fragments_digest(answer.fragments) != entry.fragments_digest or len(answer.fragments) != (
            0 if entry.reason else len(wanted)
        ):
            raise _Faulty(FaultKind.INCONSISTENT, f"{len(answer.fragments)} fragments for {len(wanted)} records")
        if entry.reason is not None:
            self.refusals[proxy] = entry.reason
            return None
        verified = tuple(self._verify(place, data) for place, data in enumerate(answer.fragments))
        if len({(fragment.fragment_id, fragment.precursor) for fragment in verified}) > 1:
            raise _Faulty(FaultKind.BAD_FRAGMENT, "the capsule fragments come from several key fragments")
        return _Good(proxy, verified, raw)

    def _verify(self, place: int, data: bytes) -> VerifiedCapsuleFragment:
        record = self._request.records[place]
        try:
            return verify_capsule_fragment(
                data,
                capsule=record.capsule,
                verifying_key=self._grant.verifying_key,
                delegating_key=self._delegating_key,
                receiving_key=self._grant.terms.receiving_key,
            )
        except InvalidInput as error:
            raise _Faulty(FaultKind.BAD_FRAGMENT, f"record {record.sequence}: {error}") from error

    def _name_both(self, first: _Good, second: _Good) -> None:
        for one, other in ((first, second), (second, first)):
            detail = f"it used the same key fragment as {other.proxy.hex()}"
            self.faults.append(Fault(one.proxy, FaultKind.SAME_FRAGMENT, detail, one.raw))

    def _name_others(self) -> None:
        best = self._best()
        for group in list(self._groups.values()):
            if group is not best:
                for good in group.values():
                    detail = f"its key fragment does not belong to those of {len(best)} other proxies"
                    self.faults.append(Fault(good.proxy, FaultKind.OTHER_GRANT, detail, good.raw))
        self._groups = {precursor: group for precursor, group in self._groups.items() if group is best}


class _Faulty(Exception):
    """Carries a kind of fault out of the checks; caught right there."""

    def __init__(self, kind: FaultKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def encode_answer(entry: SignedEntry, fragments: tuple[bytes, ...] = ()) -> bytes:
    """Return the bytes of an answer."""
    return encode(ProxyAnswer(entry, fragments))


decode_answer = decoder(ProxyAnswer, MAX_ANSWER_BYTES)
"""Decode an answer; what it says is for `Collection` to check. Raises `InvalidInput`."""
