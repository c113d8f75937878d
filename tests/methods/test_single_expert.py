"""The best single expert: found by sums over clients, and the right one where it is known which that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.contribution import WEIGHT, State, total
from fedalign.errors import UserError
from fedalign.methods.base import Participation
from fedalign.methods.rollouts import uniform
from fedalign.methods.single_expert import COUNTS, REWARDS, SingleExpert, SingleExpertPhase
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from tests.language_models import random_model

from .stated import PROMPTS, SIDES, client, contributions, dimensions, method, rounds, setting, wishes

STATEMENTS = ("praise, moving", "praise, still", "blame, moving", "blame, still")
SETTINGS = SingleExpert(client_prompts=8, batch=3, temperature=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def phase(folder: Path, settings: SingleExpert = SETTINGS, **changes: Any) -> SingleExpertPhase:
    *_, found = method(merging=settings, **changes).phases(setting(folder))
    assert isinstance(found, SingleExpertPhase)
    return found


def state_of(own: SingleExpertPhase, scale: float = 0.7) -> State:
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator) if "expert/" in name else tensor
        for name, tensor in own.initial(Streams(3), {}).items()
    }


def vectors(own: SingleExpertPhase, *statements: str) -> Tensor:
    return torch.stack([own.preferences.vector(each, "x") for each in statements])


def test_sums_are_rewards_of_what_each_wanted_expert_writes(folder: Path) -> None:
    own = phase(folder)
    state = state_of(own)
    shard = client(rl=wishes("praise, moving", "blame, moving=0.5", count=5))
    found = contributions(own, state, shard)
    streams = Streams(3, "single", 1, "ann")
    examples = own.own(shard)
    order = torch.randperm(5, generator=streams.torch("prompts")).tolist()
    seeds = torch.randint(2**62, (5,), generator=streams.torch("texts")).tolist()
    expected = {REWARDS: torch.zeros(5, 4).double(), COUNTS: torch.zeros(5, 4).double()}
    for place, seed in zip(order, seeds, strict=True):
        example = examples[place]
        wanted = own.vector(example)
        for expert in wanted.nonzero()[:, 0].tolist():
            alone = torch.nn.functional.one_hot(torch.tensor([expert]), 4).float()
            # The expert alone, by another way: an even mixture of one.
            (text,) = own.references.even([example.prompt], alone, uniform([seed], 5), 1.0)
            assert own.rewards is not None
            reference = own.references.measured(own.rewards, [example.prompt])
            high = torch.sigmoid(own.rewards.measured([example.prompt], [text]) - reference)[0]
            sides = torch.stack([high[0], 1 - high[0], high[1], 1 - high[1]])
            row = STATEMENTS.index(example.group) if example.group in STATEMENTS else 4
            expected[REWARDS][row, expert] += float((sides * wanted).sum() / wanted.sum())
            expected[COUNTS][row, expert] += 1
    for name, tensor in expected.items():
        assert torch.allclose(found.tensors[name], tensor, atol=1e-5)
    assert found.scalars[WEIGHT] == 1
    rewards = [each for each in decode(found.scalars) if each.name == "train/reward"]
    assert sum(each.total for each in rewards) == pytest.approx(float(expected[REWARDS].sum()), rel=1e-5)


def test_sums_of_clients_add_up_and_nobody_without_prompts_counts(folder: Path) -> None:
    own = phase(folder)
    state = state_of(own)
    ann, bob = client(rl=wishes("praise, moving")), client(rl=wishes("blame, still"), name="bob")
    nothing = client(rl=wishes("praise", "all"), name="eve")
    together = contributions(own, state, ann, bob, nothing)
    parts = total([contributions(own, state, each) for each in (ann, bob)])
    assert together.scalars[WEIGHT] == 2
    for name in (REWARDS, COUNTS):
        assert torch.equal(together.tensors[name], parts.tensors[name])
    after = rounds(own, state, ann, bob, nothing)
    assert torch.allclose(after[COUNTS].double(), together.tensors[COUNTS])
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items() if "expert/" in name)
    assert own.participation is Participation.ALL and own.rounds == 1


def test_the_right_expert_is_chosen_in_a_rigged_world(folder: Path) -> None:
    # An expert that always writes the word that its measure counts, and others that write nothing of it.
    own = phase(folder)
    state = own.initial(Streams(3), {})

    class Rigged(type(own._writer)):  # type: ignore[misc]
        def write_told(self, prompts: Any, told: Any, *rest: Any, **more: Any) -> Any:
            text = super().write_told(prompts, told, *rest, **more)
            words = {0: " good fine bright", 1: " dull plot", 2: " actor", 3: " it"}
            return replace(text, texts=[words[int(each.argmax())] for each in told.fixed])

    own._writer.__class__ = Rigged
    clients = [client(rl=wishes(each), name=each) for each in STATEMENTS[:3]]
    state = rounds(own, state, *clients)
    chosen = own.writer(state).chosen(vectors(own, *STATEMENTS, "praise", "still, moving", ""))
    # praise is worth the most to who wants it; who wants blame and plot is served by plot words without praise.
    means = (state[REWARDS] / state[COUNTS].clamp(min=1)).tolist()
    for row in range(3):
        wanted = vectors(own, STATEMENTS[row])[0].nonzero()[:, 0].tolist()
        assert chosen[row] == max(wanted, key=lambda place, row=row: means[row][place])  # type: ignore[misc]
    assert SIDES[chosen[0]] == "praise"
    overall = state[REWARDS].sum(0) / state[COUNTS].sum(0)
    assert chosen[3] == (1 if overall[1] > overall[3] else 3)
    assert SIDES[chosen[4]] == "praise"
    assert chosen[5] == (2 if overall[2] > overall[3] else 3)
    assert chosen[6] == int(overall.argmax())


def test_choices_follow_the_sums(folder: Path) -> None:
    own = phase(folder)
    state = own.initial(Streams(3), {})
    sums, counts = torch.zeros(5, 4), torch.zeros(5, 4)
    sums[0], counts[0] = torch.tensor([1.0, 0, 3.0, 0]), torch.tensor([4.0, 0, 4.0, 0])
    # An expert that was never tried for a preference leaves that to what is known over all.
    sums[1], counts[1] = torch.tensor([2.0, 0, 0, 0]), torch.tensor([2.0, 0, 0, 0])
    sums[4], counts[4] = torch.tensor([0, 4.0, 0, 0]), torch.tensor([0, 5.0, 0, 0])
    writer = own.writer({**state, REWARDS: sums, COUNTS: counts})
    chosen = writer.chosen(vectors(own, "praise, moving", "praise, still", "blame, moving", "praise=2, moving", ""))
    # Over all: praise 3/6, blame 4/5, moving 3/4, still unknown.
    assert [SIDES[place] for place in chosen] == ["moving", "praise", "blame", "moving", "blame"]
    nothing = own.writer(state).chosen(vectors(own, "blame, still"))
    assert SIDES[nothing[0]] in ("blame", "still")
    noisy = own.writer({**state, REWARDS: torch.full((5, 4), -3.0), COUNTS: torch.full((5, 4), -0.5)})
    assert SIDES[noisy.chosen(vectors(own, "blame, still"))[0]] in ("blame", "still")


def test_one_expert_alone_writes_and_no_other_is_run(folder: Path) -> None:
    own = phase(folder)
    state = state_of(own)
    sums = torch.zeros(5, 4)
    sums[:, 2] = 1.0
    writer = own.writer({**state, REWARDS: sums, COUNTS: torch.ones(5, 4)})
    draws = uniform(range(2), 5)
    found = writer.write(PROMPTS[:2], vectors(own, "praise, moving", "blame, moving"), draws)
    alone = own.references.even(PROMPTS[:2], vectors(own, "moving", "moving"), draws, 1.0)
    assert found.texts == alone
    assert found.log_weights is not None and found.told is not None
    assert torch.equal(found.log_weights.exp(), torch.tensor([0.0, 0, 1, 0]).expand(2, 5, 4))
    assert found.told.active.tolist() == [[False, False, True, False]] * 2


@pytest.mark.parametrize(
    ("change", "moves"), [({"client_prompts": 2}, COUNTS), ({"temperature": 0.2}, REWARDS), ({"batch": 1}, None)]
)
def test_an_option_changes_the_sums_but_texts_at_once_do_not(
    folder: Path, change: dict[str, Any], moves: str | None
) -> None:
    shard = client(rl=wishes("praise, moving", count=6))
    each = [phase(folder), phase(folder, replace(SETTINGS, **change))]
    one, other = (contributions(own, state_of(own), shard) for own in each)
    if moves is None:
        assert torch.allclose(one.tensors[REWARDS], other.tensors[REWARDS], atol=1e-5)
    else:
        assert not torch.allclose(one.tensors[moves], other.tensors[moves], atol=1e-3)


def test_without_measures_nothing_can_be_chosen(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method\.dimensions\.tone\.measure=null"):
        phase(folder, dimensions=dimensions(measured=False))
