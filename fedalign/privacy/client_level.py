"""Bounding what one client can change: flat clipping of its whole contribution, and a bounded weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.contribution import DELTA, WEIGHT, Contribution
from fedalign.privacy.adaptive_clipping import AdaptiveClip
from fedalign.privacy.clipping import clip
from fedalign.template import Template, Vector


@dataclass(frozen=True)
class ClientLevel:
    """Settings of the bound on a client's contribution; the ``privacy.clip`` block.

    Parameters
    ----------
    bound : float
        L2 norm that a client's contribution is shrunk to, all its tensors together.
    phases : mapping from phase name to float
        Bounds of phases that need another one.
    scales : mapping from name prefix to float
        Factors that tensors are multiplied with before clipping, and divided by afterwards, so that statistics of
        another magnitude than the deltas take their share of the bound. They do not change the guarantee.
    weight_bound : float
        A heavier client counts as much as one of this weight, and the mean is over the expected cohort at this weight:
        with lighter clients the step is smaller, not noisier.
    adaptive : AdaptiveClip or None
        Lets the bound follow a quantile of the norms (Andrew et al. 2021), from ``bound`` on. One too small is soon
        left behind, one too large costs noise until it has shrunk.
    """

    bound: Annotated[float, Field(gt=0)]
    phases: Mapping[str, Annotated[float, Field(gt=0)]]
    scales: Mapping[str, Annotated[float, Field(gt=0)]]
    weight_bound: Annotated[float, Field(gt=0)]
    adaptive: AdaptiveClip | None

    def bound_of(self, phase: str) -> float:
        """Return the bound that a phase starts with."""
        return self.phases.get(phase, self.bound)

    def clip(self, contribution: Contribution, template: Template, bound: float) -> tuple[Vector, float]:
        """Return a client's clipped vector, and the norm that it had.

        Parameters
        ----------
        contribution : Contribution
            Checked against the template.
        template : Template
        bound : float

        Returns
        -------
        vector : float64 array, shape (template.size,)
            In units of the scales; its norm is at most ``bound``.
        norm : float
        """
        weight = contribution.scalars.get(WEIGHT, self.weight_bound)
        factor = min(weight, self.weight_bound) / (weight * self.weight_bound) if weight else 0.0
        tensors = {k: t.double() * factor if k.startswith(DELTA) else t for k, t in contribution.tensors.items()}
        return clip(template.flatten(Contribution(tensors)) * template.scales(self.scales), bound)
