"""The arms of the experiment on PCM: what is merged how, as overrides of the run configuration."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

BASE, EXPERTS = "{base}", "{experts}"
"""What stands for the folders of the base model and of a seed's experts in overrides."""
SEEDS = (0, 1, 2)
SIDES = ("praise", "criticism", "plain", "ornate", "long", "short")
_DIMENSIONS = (("praise", "criticism"), ("plain", "ornate"), ("long", "short"))
HELD_OUT = ("praise, ornate, short", "criticism, plain, long")
"""Combinations that no client states in training; those of the data's configuration."""

STATED = tuple(each for each in map(", ".join, itertools.product(*_DIMENSIONS)) if each not in HELD_OUT)
"""Combinations that somebody states in training."""

_COMMON = (
    f"model.model={BASE}",
    "model.target_modules=[c_attn,c_fc,c_proj]",
    "model.rank=8",
    "model.alpha=16",
    "federation.evaluate_every=1000",
    "federation.checkpoint_every=1000",
)
_LOADED = (
    "method/experts=adapters",
    *(f"+method.experts.paths.{side}={EXPERTS}/{side}" for side in SIDES),
    "partition.shares.sft=0",
    "partition.shares.rl=1",
)
# Who demonstrates is in four silos, so that a step has sixteen texts of a side.
_DEMONSTRATED = ("partition=silos", "partition.clients=4", "federation/sampler=full")
# Users are clients: each has eight judgments under one preference, and no other.
_USERS = ("federation.sampler.size=10", "federation.rounds=24")
_ONE = ("partition=silos", "partition.clients=1", "federation/sampler=full", "federation.rounds=24")
_LEARNT = (
    "method/merging/learning=offline",
    "method.merging.batch=8",
    "method.merging.local.steps=8",
    "method.merging.local.lr=0.005",
    "method.merging.local.schedule=cosine",
)
_ONLINE = (
    "method.merging.batch=8",
    "method.merging.learning.algorithm.epochs=2",
    "method.merging.learning.algorithm.minibatches=2",
    "method.merging.learning.algorithm.eta=20",
    "method.merging.local.lr=0.005",
    "method.merging.local.schedule=cosine",
)


@dataclass(frozen=True)
class Arm:
    """One kind of run.

    Parameters
    ----------
    name : str
        Also the folder of its runs.
    label : str
    overrides : tuple of str
    """

    name: str
    label: str
    overrides: tuple[str, ...]


ARMS: tuple[Arm, ...] = (
    # First: its run trains the experts that all others load.
    Arm(
        "soups",
        "Personalized Soups (mean of parameters)",
        ("method=pcm_soups", *_DEMONSTRATED, "method.experts.rounds=8", "method.experts.local.steps=3"),
    ),
    Arm("prompting", "base model, prompted", ("method=pcm_prompting", *_LOADED)),
    Arm(
        "prompted",
        "one adapter, told in words, same demonstrations",
        (
            "method=pcm_prompted",
            *_LOADED[:-2],
            *_DEMONSTRATED,
            "method.merging.training.rounds=8",
            "method.merging.training.local.steps=18",
        ),
    ),
    Arm("single", "best single expert", ("method=pcm_single", *_LOADED, "method.merging.client_prompts=2")),
    Arm("uniform", "uniform mixture", ("method=pcm", *_LOADED, "method.merging.rounds=0")),
    Arm(
        "constant",
        "PCM, constant for a preference",
        ("method=pcm", *_LOADED, *_USERS, *_LEARNT, "method/merging/control=constant"),
    ),
    Arm("federated", "PCM, token by token, federated", ("method=pcm", *_LOADED, *_USERS, *_LEARNT)),
    Arm(
        "central",
        "PCM, token by token, one client with everything, steps of 80 pairs",
        ("method=pcm", *_LOADED, *_ONE, *_LEARNT, "method.merging.batch=80"),
    ),
    Arm(
        "central_small",
        "PCM, token by token, one client with everything, ten times as many steps of 8 pairs",
        ("method=pcm", *_LOADED, *_ONE, *_LEARNT, "method.merging.local.steps=80"),
    ),
    Arm(
        "online",
        "PCM, federated, REBEL, half of the prompts covered",
        (
            "method=pcm",
            *_LOADED,
            *_USERS,
            *_ONLINE,
            f"method.merging.learning.coverage.statements=[{','.join(repr(each) for each in STATED)}]",
        ),
    ),
    Arm(
        "online_own",
        "PCM, federated, REBEL, own preferences alone",
        ("method=pcm", *_LOADED, *_USERS, *_ONLINE, "method.merging.learning.coverage.share=0"),
    ),
)
MAIN = tuple(arm.name for arm in ARMS if arm.name not in ("central_small", "online", "online_own"))


def overrides(arm: Arm, folders: Mapping[str, str]) -> tuple[str, ...]:
    """Return an arm's overrides with folders put in, by what stands for them."""
    found = (*_COMMON, *arm.overrides)
    for place, folder in folders.items():
        found = tuple(one.replace(place, folder) for one in found)
    # A method is chosen before its parts are.
    return tuple(sorted(found, key=lambda one: not one.startswith("method=")))
