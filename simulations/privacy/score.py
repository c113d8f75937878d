"""Scores of the unseen groups from a finished run's model, for runs whose guarantee lets no metric out."""

from __future__ import annotations

from pathlib import Path

from fedalign.config import parse, to_json
from fedalign.data.federated import Role
from fedalign.metrics.record import decode
from fedalign.model_files import load_model
from fedalign.report.run_directory import RunDirectory
from fedalign.rng import Streams
from fedalign.site import open_site

SCORE = "unseen/alignment_score"


def unseen_scores(path: Path) -> dict[str, float]:
    """Return the alignment score of every unseen group, as the run's own last evaluation has or would have it."""
    directory = RunDirectory.open(path)
    resolved = directory.read_config()
    config = parse(resolved)
    site = open_site(to_json(resolved), {})
    phase = site.phases[-1]
    state = load_model(directory.model, config.method.name)[phase.name]
    found: dict[str, float] = {}
    for client in site.data.clients:
        if client.role is Role.UNSEEN:
            told = phase.evaluate(state, site.data.shard(client.name), Streams(config.seed))
            found |= {item.group: item.total / item.n for item in decode(told.scalars) if item.name == SCORE}
    return found
