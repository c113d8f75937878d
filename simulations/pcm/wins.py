"""Which of two arms serves a prompt better: wins over all test prompts of a seed, with intervals over prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedalign.config import parse, to_json
from fedalign.methods.merging import StatedPhase
from fedalign.methods.stated_evaluation import signed
from fedalign.methods.stated_preference import combined
from fedalign.model_files import load_model
from fedalign.report.run_directory import RunDirectory
from fedalign.report.statistics import Estimate, mean_interval
from fedalign.site import open_site

WORTH = "worth.json"
"""What each test prompt's text is worth to who asked, in the run's directory."""

Worth = Mapping[str, Mapping[int, Sequence[float]]]
"""Arm, seed: the mean measure of the wanted sides, prompt by prompt in one order."""


def worth(directory: Path) -> list[float]:
    """Return what the texts of a finished run are worth, and keep it beside the run."""
    kept = directory / WORTH
    if kept.is_file():
        found: list[float] = json.loads(kept.read_text())
        return found
    found = list(_worth(directory))
    kept.write_text(json.dumps(found))
    return found


def _worth(directory: Path) -> Iterator[float]:
    run = RunDirectory.open(directory)
    resolved = dict(run.read_config())
    config = parse(resolved)
    site = open_site(to_json(resolved), {})
    phase = site.phases[-1]
    assert isinstance(phase, StatedPhase)
    assert phase.rewards is not None
    writer = phase.writer(load_model(run.model, config.method.name)[phase.name])
    for shard in (site.data.shard(client.name) for client in site.data.clients):
        examples = phase.scorer.chosen(shard)
        if examples:
            texts = phase.scorer.texts(writer, examples, shard.client, config.seed)
            measured = phase.rewards.measured([example.prompt for example in examples], texts)
            vectors = torch.stack([phase.vector(example) for example in examples])
            yield from combined(signed(measured), vectors).tolist()


def win_rate(found: Worth, first: str, second: str) -> Estimate | None:
    """Return how often the first arm's text is worth more, ties counting half, over prompts of all shared seeds."""
    wins: list[float] = []
    for seed, own in found.get(first, {}).items():
        other = found.get(second, {}).get(seed)
        if other is not None:
            more = np.sign(np.array(own) - np.array(other))
            wins += (0.5 + 0.5 * more).tolist()
    return mean_interval(wins) if wins else None
