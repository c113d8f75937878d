"""What is recorded of a run of the experiment on PCM, and how the oracle is scored on a run's experts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedalign.config import parse, to_json
from fedalign.methods.control_phase import ControlPhase
from fedalign.methods.stated_writer import MergedWriter
from fedalign.metrics.record import MetricSum
from fedalign.model_files import load_model
from fedalign.models.merged_generation import Merger
from fedalign.report.run_directory import RunDirectory
from fedalign.site import open_site
from simulations.pcm.arms import HELD_OUT
from simulations.pcm.oracle import Oracle, wrong_tokens
from simulations.pcm.wins import worth

KEPT = ("reward", "reward_tone", "reward_style", "reward_length", "satisfied", "win_rate", "weight_entropy", "base_nll")
_PREFIX = "unseen/"


@dataclass(frozen=True)
class SeedResult:
    """One arm under one seed.

    Parameters
    ----------
    scores : dict from str to float
        ``all/<metric>`` over all combinations, ``trained/<metric>`` and ``held_out/<metric>`` over those that clients
        stated and those that nobody did: means of the combinations' own.
    seconds : float
        Of the whole run.
    worth : list of float
        What each test prompt's text is worth to who asked (``wins``); empty where that was not worked out.
    """

    scores: dict[str, float]
    seconds: float
    worth: list[float]


def from_json(text: str) -> dict[str, dict[int, SeedResult]]:
    """Return what :func:`simulations.records.to_json` wrote."""
    return {
        name: {int(seed): SeedResult(**values) for seed, values in seeds.items()}
        for name, seeds in json.loads(text).items()
    }


def read_run(directory: Path) -> SeedResult:
    """Return a finished run's numbers."""
    summary = json.loads((directory / "summary.json").read_text())
    seconds = round(summary["timing"]["total_s"], 1)
    return SeedResult(by_combination(summary["groups"]), seconds, [round(each, 4) for each in worth(directory)])


def by_combination(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return means over combinations of three sides, by whether somebody stated them in training."""
    stated = {_sides(group): values for group, values in groups.items() if group.count(",") == 2}
    held = {_sides(statement) for statement in HELD_OUT}
    parts = {"all": set(stated), "trained": set(stated) - held, "held_out": set(stated) & held}
    found = {}
    for part, members in parts.items():
        for name in KEPT:
            values = [stated[m][_PREFIX + name] for m in sorted(members, key=sorted) if _PREFIX + name in stated[m]]
            if values:
                found[f"{part}/{name}"] = round(float(np.mean(values)), 6)
    return found


def oracle(directory: Path) -> SeedResult:
    """Return what weights of somebody who knows the world's words make of a run's experts."""
    run = RunDirectory.open(directory)
    resolved = dict(run.read_config())
    config = parse(resolved)
    site = open_site(to_json(resolved), {})
    phase = site.phases[-1]
    assert isinstance(phase, ControlPhase)
    writer = phase.writer(load_model(run.model, config.method.name)[phase.name])
    wrong = wrong_tokens(phase.preferences.names, phase.codec, phase.experts.vocabulary)
    merger = Merger(phase.experts, writer.merger.control, Oracle(wrong))
    knowing = MergedWriter(merger, phase.preferences, phase.fallback, phase.codec, phase.lengths)
    shards = [site.data.shard(client.name) for client in site.data.clients]
    tested = [(shard, phase.scorer.chosen(shard)) for shard in shards]
    sums = [
        one
        for shard, examples in tested
        if examples
        for one in phase.scorer.evaluate(knowing, examples, shard.client, config.seed)
        if "weight" not in one.name
    ]
    return SeedResult(by_combination(_means(sums)), 0.0, [])


def _means(sums: list[MetricSum]) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, list[float]]] = {}
    for one in sums:
        own = totals.setdefault(one.group, {}).setdefault(one.name, [0.0, 0.0])
        own[0], own[1] = own[0] + one.total, own[1] + one.n
    return {group: {name: total / n for name, (total, n) in values.items()} for group, values in totals.items()}


def _sides(statement: str) -> frozenset[str]:
    return frozenset(side.strip() for side in statement.split(","))
