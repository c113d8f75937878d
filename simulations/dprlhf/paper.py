"""The paper's numbers, not ours: mean reward on IMDb, Table 1 of arXiv 2310.16960."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulations.dprlhf.arms import LEVELS


@dataclass(frozen=True)
class PaperRow:
    """A model of the paper.

    Parameters
    ----------
    model : str
    pretrained : float
        Mean reward before any training.
    aligned : dict from level to (mean, half width of the 95 % interval over three seeds)
    """

    model: str
    pretrained: float
    aligned: Mapping[str, tuple[float, float]]

    def share(self, level: str) -> float:
        """Return which share of the gain without privacy is left."""
        return (self.aligned[level][0] - self.pretrained) / (self.aligned["none"][0] - self.pretrained)


def _row(model: str, pretrained: float, *aligned: tuple[float, float]) -> PaperRow:
    return PaperRow(model, pretrained, dict(zip(LEVELS, aligned, strict=True)))


PAPER = (
    _row("GPT-2", -0.30, (1.47, 0.81), (2.35, 0.52), (2.74, 0.27), (2.81, 0.19), (3.10, 0.22)),
    _row("GPT-2 Medium", -0.28, (2.39, 0.52), (2.60, 0.43), (2.93, 0.17), (2.93, 0.13), (3.45, 0.02)),
    _row("GPT-2 Large", -0.24, (0.71, 0.13), (1.91, 0.42), (3.20, 0.23), (3.38, 0.03), (3.32, 0.06)),
)
