"""Unmasking: the masks that are left in a sum, from the shares that the survivors disclosed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedalign.federation.secure import keys
from fedalign.federation.secure.fixed_point import Words
from fedalign.federation.secure.graph import Graph
from fedalign.federation.secure.masks import apply_mask, sign
from fedalign.federation.secure.messages import Disclosure, PublicKeys
from fedalign.federation.secure.sharing import combine, holders


class Recovery:
    """Shares by owner and holder, and what follows from them.

    Parameters
    ----------
    round_id : str
    public : mapping of str to PublicKeys
    graph : Graph
        The neighbourhoods in which the secrets were split.
    survivors : frozenset of str
        Whose vectors are in the sum.
    needed : callable
        How many shares recover the secrets of a name.
    """

    def __init__(
        self,
        round_id: str,
        public: Mapping[str, PublicKeys],
        graph: Graph,
        survivors: frozenset[str],
        needed: Callable[[str], int],
    ) -> None:
        self.round_id, self.public, self.graph, self.survivors, self.needed = round_id, public, graph, survivors, needed
        self.shares: dict[str, dict[str, bytes]] = {}

    def add(self, holder: str, disclosure: Disclosure) -> None:
        """Take in the shares of a holder: for each owner of one secret only, as survivors and dropped are disjoint."""
        for owner, share in [*disclosure.self_masks.items(), *disclosure.mask_keys.items()]:
            self.shares.setdefault(owner, {})[holder] = share

    def remove_masks(self, total: Words, owners: Sequence[str]) -> None:
        """Subtract from a sum, in place, the masks of ``owners``, survivors and dropped parties alike.

        Raises
        ------
        ValueError
            If shares are missing or wrong; the sum is then still masked.
        """
        # All secrets first: a sum from which some of the masks were taken is of no use to anyone.
        seeds = {owner: self._seed(owner) for owner in owners}
        for owner, seed in seeds.items():
            if owner in self.survivors:
                apply_mask(total, keys.self_mask_key(seed, self.round_id, owner), -1)
            else:
                self._remove_pair_masks(total, owner, seed)

    def _seed(self, owner: str) -> bytes:
        """Return the one secret of ``owner`` that the sum depends on, checked against what the owner published."""
        try:
            seed = combine(self.shares.get(owner, {}), self.needed(owner), holders(owner, self.graph[owner]))
        except ValueError as error:
            raise ValueError(f"the secret of {owner} cannot be recovered: {error}") from None
        public = self.public[owner]
        if owner in self.survivors:
            right = keys.commitment(seed, self.round_id, owner) == public.commitment
        else:
            right = keys.masking_key(seed, self.round_id, owner).public_key().public_bytes_raw() == public.masking
        if not right:
            raise ValueError(f"the shares of {owner} do not give the secret that it committed to")
        return seed

    def _remove_pair_masks(self, total: Words, dropped: str, seed: bytes) -> None:
        private = keys.masking_key(seed, self.round_id, dropped)
        for other in sorted(self.graph[dropped] & self.survivors):
            key = keys.pair_mask_key(private, self.public[other].masking, self.round_id, dropped, other)
            apply_mask(total, key, -sign(other, dropped))
