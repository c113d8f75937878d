"""How a policy follows preferences: counted by hand on a writer that says what it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fedalign.methods.judges import Judge, OracleJudge, Verdicts
from fedalign.methods.policy_evaluation import (
    PolicyEvaluation,
    Preferences,
    follow_sums,
    opposed_group,
)
from fedalign.methods.policy_writer import Written

SETTINGS = PolicyEvaluation(OracleJudge(), "empty", 0.3, 4, 0.0)
GROUPS = {"criticism": torch.tensor([-1.0]), "praise": torch.tensor([1.0])}


@dataclass
class Parrot:
    """Praises under positive latents, condemns under negative ones and is lost for words at 0."""

    latent: int = 1

    @property
    def policy(self) -> Parrot:
        return self

    def write(self, prompts: Sequence[str], z: Any, *rest: Any, reference: bool = False) -> Written:
        side = 0.0 if z is None or reference else float(z[0, 0])
        text = "a brilliant film" if side > 0 else "a dull film" if side < 0 else "a film"
        return Written(None, [text] * len(prompts))  # type: ignore[arg-type]

    def divergence(self, tokens: Any, z: Any) -> torch.Tensor:
        return torch.full((2,), 0.0 if z is None else float(z[0, 0]) + 2)


def scored(writer: Parrot, own: float, settings: PolicyEvaluation = SETTINGS) -> dict[tuple[str, str], float]:
    wanted = Preferences(GROUPS, "praise", torch.tensor([own]))
    sums = follow_sums(writer, settings, ["Well,", "So"], wanted, torch.Generator())  # type: ignore[arg-type]
    totals: dict[tuple[str, str], list[float]] = {}
    for item in sums:
        assert item.n > 0
        kept = totals.setdefault((item.name, item.group), [0.0, 0.0])
        kept[0], kept[1] = kept[0] + item.total, kept[1] + item.n
    return {key: total / n for key, (total, n) in totals.items()}


@pytest.mark.parametrize(("own", "follows"), [(0.3, 1.0), (0.0, 0.5), (-0.3, 0.0)])
def test_a_policy_that_obeys_follows_everybody(own: float, follows: float) -> None:
    values = scored(Parrot(), own)
    for group in GROUPS:
        assert values["follow", group] == values["switch_rate", group] == 1.0
    assert values["follow_own", "praise"] == follows
    assert (values["policy_kl", "criticism"], values["policy_kl", "praise"]) == (1.0, 3.0)
    assert values["unreadable", "praise"] == 0.0


def test_a_policy_without_a_latent_is_judged_for_everybody_by_the_same_words() -> None:
    values = scored(Parrot(latent=0), 0.3)
    assert {values[name, group] for name in ("follow", "switch_rate") for group in GROUPS} == {0.5}


def test_the_baseline_decides_what_must_be_beaten() -> None:
    class Keen(Parrot):
        def write(self, prompts: Sequence[str], z: Any, *rest: Any, reference: bool = False) -> Written:
            if reference:
                return Written(None, ["a brilliant, great film"] * len(prompts))  # type: ignore[arg-type]
            return super().write(prompts, z)

    values = scored(Keen(), 0.3, replace(SETTINGS, baseline="reference"))
    assert (values["follow", "criticism"], values["follow", "praise"]) == (1.0, 0.0)


def test_verdicts_that_cannot_be_read_count_as_such_and_not_as_a_half() -> None:
    class Mumbling(Judge):
        def scores(self, preference: str, prompts: Sequence[str], *texts: Sequence[str]) -> Verdicts:
            return Verdicts(torch.tensor([float("nan"), 1.0], dtype=torch.float64))

    values = scored(Parrot(), 0.3, replace(SETTINGS, judge=Mumbling()))
    assert (values["follow", "praise"], values["unreadable", "praise"]) == (1.0, 0.5)


def test_the_same_share_of_clients_writes_in_every_round_and_another_for_another_seed() -> None:
    names = [f"client-{i}" for i in range(1000)]
    chosen = {seed: [SETTINGS.takes(name, seed) for name in names] for seed in (0, 1)}
    assert 0.25 < sum(chosen[0]) / 1000 < 0.35
    assert chosen[0] != chosen[1]
    assert chosen[0] == [SETTINGS.takes(name, 0) for name in names]
    assert all(replace(SETTINGS, clients=1.0).takes(name, 0) for name in names)


def test_the_opposed_group_is_the_farthest() -> None:
    means = {"a": torch.tensor([0.0]), "b": torch.tensor([1.0]), "c": torch.tensor([-3.0])}
    assert [opposed_group(means, group) for group in means] == ["c", "c", "b"]
    assert opposed_group({"a": means["a"]}, "a") is None
