"""What an auditor reads off a run: how far everything that was released leans towards each canary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedalign.contribution import Contribution, State
from fedalign.errors import UserError
from fedalign.federation.custodian import Custodian, OpenAccount
from fedalign.methods.base import Phase
from fedalign.privacy.audit_bound import CanaryScores, Floats
from fedalign.privacy.canaries import Canaries
from fedalign.privacy.canary_audit import inner_products
from fedalign.privacy.protection import Protection
from fedalign.template import Vector


class ScoringCustodian(Custodian):
    """Guards a run as ever, and adds up what it releases, in units of each round's clipping bound where there is one.

    It keeps the noisy sums from before the server optimiser's step. Where the server averages, whoever sees the models
    can work them out; elsewhere the auditor may see more than others do, and holds them against the same claim, which
    is about the sums.

    Parameters
    ----------
    privacy : Protection
    open_account, seed, public
        See :class:`Custodian`; metrics are none.
    """

    def __init__(self, privacy: Protection, open_account: OpenAccount, seed: int, public: Sequence[str] = ()) -> None:
        super().__init__(privacy, (), open_account, seed, public)
        self._seen: dict[str, Vector] = {}
        self._stages: dict[str, str | None] = {}
        self._releases: Counter[str] = Counter()

    def release(
        self, phase: Phase[Any], state: State, number: int, cohort: Sequence[str], total: Contribution
    ) -> Contribution:
        """Release a round's total, and remember what it came to."""
        # Releasing moves a bound that adapts.
        bound, template, clip = self._bound(phase.name), self._template(phase, state), self.privacy.clip
        released = super().release(phase, state, number, cohort, total)
        vector = template.flatten(released)
        if clip is not None:
            vector = vector * template.scales(clip.scales) / bound
        self._stages[phase.name] = phase.stage
        self._seen[phase.name] = self._seen.get(phase.name, np.zeros_like(vector)) + vector
        self._releases[phase.name] += 1
        return released

    def scores(self, canaries: Canaries) -> CanaryScores:
        """Return inner products of the canaries' directions with the released sums, over all phases that they are in.

        Canary clients' are in units of what an included one is expected to add if it is clipped: it scores about 1, and
        a held-out one 0, or -1 if it is opposed. Canary units' are cosines, since only the optimiser knows how long
        their steps are.

        Raises
        ------
        UserError
            If nothing was released.
        """
        if not self._seen:
            raise UserError("audit: the run released nothing; raise federation.rounds or the budget")
        within = np.stack([canaries.within(self._stages[name]) for name in self._seen])
        weights = self._matched(within) if self.privacy.local is None else self._normalised(within)
        products = np.stack([self._inner_products(canaries, name) for name in self._seen])
        scores = (weights * products).sum(axis=0)
        return CanaryScores(scores[canaries.included], scores[~canaries.included], fair_coins=True)

    def _inner_products(self, canaries: Canaries, phase: str) -> Floats:
        # One direction at a time: together they may not fit in memory.
        seen = self._seen[phase]
        directions = (canaries.direction(number, phase, len(seen)) for number in range(canaries.count))
        return np.concatenate([inner_products(direction[None], seen) for direction in directions])

    def _matched(self, within: NDArray[np.bool_]) -> Floats:
        """Weigh phases as a matched filter does, by public numbers: what a canary adds over the variance of the rest.

        The rest is the noise, and the other clients, whose vectors are as long as a canary's at most.

        Parameters
        ----------
        within : bool array, shape (phases, canaries)
            Which canaries take part in which phase.

        Returns
        -------
        float array, shape (phases, canaries)
        """
        assert self.account is not None
        weights, expected = np.zeros(within.shape), np.zeros(within.shape)
        for row, (name, vector) in enumerate(self._seen.items()):
            sampling, releases = self.account.exposures[name].sampling, self._releases[name]
            adds = releases * sampling.rate
            others = sampling.population * adds**2 / len(vector)
            weights[row] = within[row] * adds / (releases * self.account.noise_multipliers[name] ** 2 + others)
            expected[row] = adds
        # What a canary scores that no released phase had is nothing.
        sum_expected = (weights * expected).sum(axis=0)
        return weights / np.where(sum_expected > 0, sum_expected, 1.0)

    def _normalised(self, within: NDArray[np.bool_]) -> Floats:
        lengths = np.array([float(np.linalg.norm(vector)) for vector in self._seen.values()])
        return within / np.where(lengths > 0, lengths, np.inf)[:, None]
