"""A party of a secure sum: what a client does with its secrets in the four stages of one round."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fedalign.federation.secure import keys
from fedalign.federation.secure.checks import check_neighbours, check_request
from fedalign.federation.secure.fixed_point import Words, word_type
from fedalign.federation.secure.masks import apply_mask, sign
from fedalign.federation.secure.messages import Disclosure, PublicKeys, UnmaskRequest
from fedalign.federation.secure.settings import SecAgg
from fedalign.federation.secure.sharing import decrypt, encrypt, holders, split

Stage = Literal["advertise", "share", "mask", "unmask", "wiped"]


@dataclass(repr=False)
class Party:
    """A client in one round; every stage happens once, in order, and a call out of turn is refused.

    All that it is told comes from the coordinator, which is trusted to follow the protocol but not with any vector
    (honest but curious: keys are not signed, so that one which replaces them, or invents neighbours, is not found
    out). Neighbours that collude with it, fewer than the threshold, add nothing but their own vectors and masks.

    A second answer to the same stage would tell more than the first: two masked vectors differ by the plain vectors'
    difference, and two disclosures may hold both secrets of one party. A process that may stop between messages
    therefore stores ``to_bytes`` before it sends a reply, keeps it secret, and never goes back to an older state.

    Parameters
    ----------
    name, round_id : str
        Unique among the parties, and among the rounds of a federation.
    settings : SecAgg
    stage : str
        What the party does next.
    seeds : dict of str to bytes
        16 bytes each for the keys ``encryption``, ``masking`` and ``self_mask``; empty once the vector is masked.
    peers : dict of str to PublicKeys
        The neighbours.
    held : dict of str to pair of bytes
        By owner, the shares of the seeds of its self mask and its masking key.
    answered : UnmaskRequest, optional
        The request that was granted.

    Raises
    ------
    ValueError
        By every method, if others sent something that the protocol does not allow.
    """

    name: str
    round_id: str
    settings: SecAgg
    stage: Stage
    seeds: dict[str, bytes]
    peers: dict[str, PublicKeys] = field(default_factory=dict)
    held: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    answered: UnmaskRequest | None = None

    @classmethod
    def create(cls, name: str, round_id: str, settings: SecAgg) -> Party:
        """Return a party with fresh secrets from the operating system."""
        seeds = {purpose: os.urandom(keys.SEED_BYTES) for purpose in ("encryption", "masking", "self_mask")}
        return cls(name, round_id, settings, "advertise", seeds)

    def advertise(self) -> PublicKeys:
        """Return the party's public keys (stage 1)."""
        self._enter("advertise")
        self.stage = "share"
        return self._public_keys()

    def share(self, neighbour_keys: Mapping[str, PublicKeys]) -> dict[str, bytes]:
        """Split the seeds of the self mask and the masking key among the neighbours (stage 2).

        Parameters
        ----------
        neighbour_keys : mapping of str to PublicKeys

        Returns
        -------
        dict of str to bytes
            By neighbour, its shares of both seeds, encrypted for it.

        Raises
        ------
        ValueError
            If there are fewer neighbours than the settings say, or keys are malformed, of another round, reflected
            or given twice.
        """
        self._enter("share")
        fewest = min(self.settings.neighbours, self.settings.minimum - 1)
        if len(neighbour_keys) < fewest:
            raise ValueError(f"{len(neighbour_keys)} neighbours given to {self.name}, at least {fewest} expected")
        check_neighbours(self.name, self._public_keys(), neighbour_keys)
        holding = holders(self.name, list(neighbour_keys))
        needed = self.settings.shares_needed(len(holding))
        self_mask, masking = (split(self.seeds[seed], needed, holding) for seed in ("self_mask", "masking"))
        sent = {
            other: encrypt(
                self._encryption_key(other, theirs), self_mask[other], masking[other], self.round_id, self.name, other
            )
            for other, theirs in neighbour_keys.items()
        }
        # Its own masking key a party never discloses, so it keeps no share of it.
        self.held = {self.name: (self_mask[self.name], b"")}
        self.peers, self.stage = dict(neighbour_keys), "mask"
        return sent

    def mask(self, inbox: Mapping[str, bytes], vector: Words) -> Words:
        """Return the vector under the self mask and one mask for every neighbour in the inbox (stage 3).

        Parameters
        ----------
        inbox : mapping of str to bytes
            By sender, what ``share`` returned for this party.
        vector : words, shape ``(length,)``
            Encoded, of the width of the settings; it is not changed.

        Raises
        ------
        ValueError
            If too few neighbours shared their secrets, one is unknown, its shares were changed, or the vector is
            not made of such words.
        """
        self._enter("mask")
        if vector.dtype != word_type(self.settings.bits) or vector.ndim != 1:
            raise ValueError(f"vector of {vector.dtype}, shape {vector.shape}; {self.settings.bits}-bit words expected")
        received = {sender: self._open(sender, ciphertext) for sender, ciphertext in inbox.items()}
        self._check_enough(len(received) + 1, "shared their secrets")
        masked = vector.copy()
        apply_mask(masked, keys.self_mask_key(self.seeds["self_mask"], self.round_id, self.name), 1)
        private = keys.masking_key(self.seeds["masking"], self.round_id, self.name)
        for other in received:
            key = keys.pair_mask_key(private, self.peers[other].masking, self.round_id, self.name, other)
            apply_mask(masked, key, sign(self.name, other))
        self.held |= received
        self.seeds, self.stage = {}, "unmask"
        return masked

    def unmask(self, request: UnmaskRequest) -> Disclosure:
        """Return a share of the self mask of every survivor and of the masking key of every dropped party (stage 4).

        The same request may come again, another one not.

        Raises
        ------
        ValueError
            If a party is said to have both survived and dropped, the request is not about exactly those whose
            shares the party holds, itself among the survivors, or too few survived.
        """
        self._enter("unmask")
        if self.answered is not None and request != self.answered:
            raise ValueError("another request to unmask was granted in this round; two would reveal more than a sum")
        check_request(self.name, self.round_id, self.held, request)
        self._check_enough(len(request.survivors), "survived")
        self.answered = request
        return Disclosure(
            self.round_id,
            {owner: self.held[owner][0] for owner in request.survivors},
            {owner: self.held[owner][1] for owner in request.dropped},
        )

    def wipe(self) -> None:
        """Forget every secret; the party can then do nothing more."""
        self.stage, self.seeds, self.held, self.peers, self.answered = "wiped", {}, {}, {}, None

    def to_bytes(self) -> bytes:
        """Return the state, secrets included, as JSON; keep it where the client's data are kept."""
        state = {
            "name": self.name,
            "round_id": self.round_id,
            "settings": asdict(self.settings),
            "stage": self.stage,
            "seeds": {purpose: seed.hex() for purpose, seed in self.seeds.items()},
            "peers": {
                name: [theirs.round_id, *(key.hex() for key in (theirs.encryption, theirs.masking, theirs.commitment))]
                for name, theirs in self.peers.items()
            },
            "held": {owner: [share.hex() for share in pair] for owner, pair in self.held.items()},
            "answered": self.answered.to_dict() if self.answered else None,
        }
        return json.dumps(state).encode()

    @classmethod
    def from_bytes(cls, stored: bytes) -> Party:
        """Return the party whose state ``to_bytes`` returned."""
        state: dict[str, Any] = json.loads(stored)
        return cls(
            state["name"],
            state["round_id"],
            SecAgg(**state["settings"]),
            state["stage"],
            {purpose: bytes.fromhex(seed) for purpose, seed in state["seeds"].items()},
            {name: PublicKeys(of, *map(bytes.fromhex, theirs)) for name, (of, *theirs) in state["peers"].items()},
            {owner: (bytes.fromhex(one), bytes.fromhex(two)) for owner, (one, two) in state["held"].items()},
            UnmaskRequest.from_dict(state["answered"]) if state["answered"] else None,
        )

    def _enter(self, stage: Stage) -> None:
        if self.stage != stage:
            raise ValueError(f"party {self.name} was asked to {stage} in round {self.round_id} but is at {self.stage}")

    def _public_keys(self) -> PublicKeys:
        return keys.public_keys(self.seeds, self.round_id, self.name)

    def _encryption_key(self, other: str, theirs: PublicKeys) -> bytes:
        private = keys.encryption_key(self.seeds["encryption"], self.round_id, self.name)
        return keys.agree(private, theirs.encryption, "encryption", self.round_id, self.name, other)

    def _open(self, sender: str, ciphertext: bytes) -> tuple[bytes, bytes]:
        if sender not in self.peers:
            raise ValueError(f"{sender} sent shares but is no neighbour of {self.name}")
        return decrypt(self._encryption_key(sender, self.peers[sender]), ciphertext, self.round_id, sender, self.name)

    def _check_enough(self, members: int, did: str) -> None:
        needed = self.settings.shares_needed(len(self.peers) + 1)
        if members < needed:
            raise ValueError(f"{members} of the neighbourhood of {self.name} {did}, {needed} needed")
