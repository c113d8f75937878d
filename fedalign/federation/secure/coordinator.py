"""The coordinator of a secure sum: it carries messages, adds up masked vectors and removes masks from the sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedalign.errors import RunFailed
from fedalign.federation.secure import graph as graphs
from fedalign.federation.secure.fixed_point import Words, word_type
from fedalign.federation.secure.keys import agree
from fedalign.federation.secure.messages import Disclosure, PublicKeys, UnmaskRequest
from fedalign.federation.secure.recovery import Recovery
from fedalign.federation.secure.settings import SecAgg
from fedalign.federation.secure.sharing import well_formed

Stage = Literal["keys", "shares", "masked", "unmask", "done"]


class SecureSumAborted(RunFailed):
    """A round of a secure sum that ended without a sum; nothing of any vector was revealed."""


class Coordinator:
    """The server's side of one round.

    Each stage takes in messages with a ``receive_...`` and is closed by the method that returns what to send next;
    whoever was not heard by then has dropped out. A malformed message counts as none, and ``refused`` says why. A
    message of an unknown party, out of turn or given twice is a mistake of the caller and raises ``ValueError``.

    Parameters
    ----------
    round_id : str
    clients : sequence of str
        Everyone who is invited.
    settings : SecAgg
    length : int
        Number of words of a vector.
    """

    def __init__(self, round_id: str, clients: Sequence[str], settings: SecAgg, length: int) -> None:
        if len(set(clients)) != len(clients):
            raise ValueError("a client is named twice")
        self.round_id, self.settings = round_id, settings
        self.refused: dict[str, str] = {}
        self._stage: Stage = "keys"
        self._waiting = set(clients)
        self._keys: dict[str, PublicKeys] = {}
        self._graph: graphs.Graph = {}
        self._letters: dict[str, dict[str, bytes]] = {}
        self._members: frozenset[str] = frozenset()
        self._survivors: frozenset[str] = frozenset()
        self._total: Words = np.zeros(length, word_type(settings.bits))
        self._requests: dict[str, UnmaskRequest] = {}
        self._recovery: Recovery | None = None

    @property
    def survivors(self) -> frozenset[str]:
        """Whose vectors are in the sum; known from the third stage on."""
        return self._survivors

    def receive_keys(self, name: str, public: PublicKeys) -> None:
        """Take in the public keys of a party (stage 1)."""
        self._take("keys", name)
        try:
            PublicKeys.from_dict(public.to_dict())
            for key in (public.encryption, public.masking):
                agree(X25519PrivateKey.generate(), key, "check", self.round_id, "", name)
        except ValueError as error:
            return self._refuse(name, str(error))
        if public.round_id != self.round_id:
            return self._refuse(name, f"keys of round {public.round_id}")
        taken = {key for theirs in self._keys.values() for key in (theirs.encryption, theirs.masking)}
        if public.encryption == public.masking or taken & {public.encryption, public.masking}:
            return self._refuse(name, "a key is given twice, or another party's")
        self._keys[name] = public
        return None

    def neighbourhoods(self) -> dict[str, dict[str, PublicKeys]]:
        """Close stage 1 and return, by party, the public keys of its neighbours.

        Raises
        ------
        SecureSumAborted
            If fewer than ``minimum`` parties sent keys.
        """
        self._close("keys", "shares", self._keys, "sent keys")
        # The order of arrival is not to matter, hence sorted.
        self._graph = graphs.random_circulant(sorted(self._keys), self.settings.neighbours)
        return {name: {other: self._keys[other] for other in sorted(self._graph[name])} for name in self._graph}

    def receive_shares(self, name: str, shares: Mapping[str, bytes]) -> None:
        """Take in the encrypted shares of a party, by recipient (stage 2)."""
        self._take("shares", name)
        if set(shares) != self._graph[name]:
            return self._refuse(name, "shares are not for exactly its neighbours")
        if not all(well_formed(ciphertext) for ciphertext in shares.values()):
            return self._refuse(name, "encrypted shares have a wrong length")
        self._letters[name] = dict(shares)
        return None

    def inboxes(self) -> dict[str, dict[str, bytes]]:
        """Close stage 2 and return, by party, what the others encrypted for it, by sender.

        A party whose neighbourhood shrank below the threshold could not be unmasked and is dropped.

        Raises
        ------
        SecureSumAborted
            If fewer than ``minimum`` parties are left.
        """
        core = graphs.core(self._graph, self._letters, self._needed)
        for name in sorted(set(self._letters) - core):
            self._refuse(name, "too few of its neighbours shared their secrets")
        self._close("shares", "masked", core, "shared their secrets")
        self._members = frozenset(core)
        letters, self._letters = self._letters, {}
        return {
            name: {sender: letters[sender][name] for sender in sorted(self._graph[name] & core)}
            for name in sorted(core)
        }

    def receive_masked(self, name: str, vector: Words) -> None:
        """Add the masked vector of a party to the sum (stage 3); the vector itself is not kept."""
        self._take("masked", name)
        if vector.dtype != self._total.dtype or vector.shape != self._total.shape:
            return self._refuse(name, f"masked vector is not {len(self._total)} words of {self._total.dtype}")
        np.add(self._total, vector, out=self._total)
        self._survivors |= {name}
        return None

    def unmask_requests(self) -> dict[str, UnmaskRequest]:
        """Close stage 3 and return, by surviving party, what to tell it about its neighbourhood.

        Raises
        ------
        SecureSumAborted
            If fewer than ``minimum`` parties survived, some neighbourhood fell below the threshold, or the survivors
            fell apart into groups without a mask between them, whose separate sums could be told.
        """
        self._close("masked", "unmask", self._survivors, "sent masked vectors")
        alone = [name for name in self._to_recover() if self._witnesses(name, self._survivors) < self._needed(name)]
        if alone:
            self._abort(f"too few neighbours of {', '.join(alone)} survived to unmask the sum")
        if not graphs.connected(self._graph, self._survivors):
            self._abort("the survivors fell apart into groups without common masks; use more neighbours")
        self._requests = {name: self._request(name) for name in sorted(self._survivors)}
        self._recovery = Recovery(self.round_id, self._keys, self._graph, self._survivors, self._needed)
        return dict(self._requests)

    def receive_unmask(self, name: str, disclosure: Disclosure) -> None:
        """Take in the shares that a party discloses (stage 4)."""
        self._take("unmask", name)
        assert self._recovery is not None
        request = self._requests[name]
        try:
            Disclosure.from_dict(disclosure.to_dict())
        except ValueError as error:
            return self._refuse(name, str(error))
        if (disclosure.round_id, set(disclosure.self_masks), set(disclosure.mask_keys)) != (
            self.round_id,
            set(request.survivors),
            set(request.dropped),
        ):
            return self._refuse(name, "disclosed shares are not those asked for")
        self._recovery.add(name, disclosure)
        return None

    def result(self) -> Words:
        """Close stage 4 and return the sum of the survivors' vectors modulo ``2**bits``.

        Survivors that did not answer stage 4 are in the sum all the same.

        Raises
        ------
        SecureSumAborted
            If a secret has too few shares, or the shares do not give what its owner committed to.
        """
        if self._stage != "unmask" or self._recovery is None:
            raise ValueError(f"the result is not to be had at stage {self._stage}")
        self._stage = "done"
        try:
            self._recovery.remove_masks(self._total, self._to_recover())
        except ValueError as error:
            self._abort(str(error))
        self._recovery = None
        return self._total

    def _take(self, stage: Stage, name: str) -> None:
        if self._stage != stage:
            raise ValueError(f"message of {name} for the stage {stage}, but the round is at {self._stage}")
        if name not in self._waiting:
            raise ValueError(f"{name} is not expected to send a message in the stage {stage}, or has sent one")
        self._waiting.remove(name)

    def _refuse(self, name: str, reason: str) -> None:
        self.refused[name] = reason

    def _close(self, stage: Stage, following: Stage, alive: Collection[str], did: str) -> None:
        if self._stage != stage:
            raise ValueError(f"the stage {stage} cannot be closed, the round is at {self._stage}")
        if len(alive) < self.settings.minimum:
            self._abort(f"only {len(alive)} clients {did}, at least {self.settings.minimum} needed")
        self._stage, self._waiting = following, set(alive)

    def _abort(self, reason: str) -> None:
        self._stage, self._letters, self._recovery = "done", {}, None
        self._total[:] = 0
        refused = "".join(f"; {name}: {why}" for name, why in self.refused.items())
        raise SecureSumAborted(f"secure sum of round {self.round_id}: {reason}{refused}")

    def _needed(self, name: str) -> int:
        return self.settings.shares_needed(len(self._graph[name]) + 1)

    def _witnesses(self, name: str, alive: Collection[str]) -> int:
        return len((self._graph[name] | {name}) & set(alive))

    def _to_recover(self) -> list[str]:
        """Return every member with a mask in the sum: survivors, and dropped parties with a surviving neighbour."""
        return sorted(n for n in self._members if n in self._survivors or self._graph[n] & self._survivors)

    def _request(self, name: str) -> UnmaskRequest:
        known = (self._graph[name] | {name}) & self._members
        return UnmaskRequest(
            self.round_id, tuple(sorted(known & self._survivors)), tuple(sorted(known - self._survivors))
        )
