"""The base model of the experiment: it has read texts of every kind of the world, and nobody's preference."""

from __future__ import annotations

from fedalign.config import parse, resolve
from fedalign.data.corpus import CorpusSource
from fedalign.rng import Streams
from simulations.emdpo.base import Text

_WORLD = (
    "method=pcm",
    "data.world_seed=9999",
    "data.held_out=[]",
    "data.users=160",
    "data.demonstrations=6",
    "data.comparisons=6",
)
"""Of no run."""


def public_texts() -> list[Text]:
    """Return prompts and responses of a world of its own, whichever was wanted or preferred."""
    source = parse(resolve([*_WORLD])).data
    assert isinstance(source, CorpusSource)
    examples = [example for example in source.load(Streams(0)).examples if example.split == "train"]
    texts = [(e.prompt, e.response) for e in examples]
    texts += [(e.prompt, e.rejected) for e in examples if e.rejected is not None]
    return list(dict.fromkeys(texts))
