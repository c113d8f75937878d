"""How stated preferences are served: every number of known texts by hand, and the same draws whoever writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedalign.data.corpus import Example
from fedalign.methods.merging import silent_control
from fedalign.methods.reference_texts import ReferenceTexts
from fedalign.methods.stated_evaluation import StatedEvaluation, StatedScorer, over_preferences
from fedalign.methods.stated_preference import Preferences, SideRewards
from fedalign.methods.stated_writer import MergedWriter, StatedText, StatedWriter
from fedalign.metrics.record import MetricSum
from fedalign.models.control import Told
from fedalign.models.merged_generation import Merger
from fedalign.models.mixing import Linear
from fedalign.models.text import TextCodec
from tests.language_models import WORDS, random_model

from .scripted_experts import Script, ScriptedExperts, table_of
from .stated import LENGTHS, SIDES, client, dimensions

CPU = torch.device("cpu")
EVEN: Script = {"praise": ["good"], "blame": ["good"], "moving": ["it"], "still": ["it"]}
"""What writes the texts to compare with: alone each is sure, two of them are half and half."""
BOTH, QUIET, TONE = "praise, moving", "blame, still", "praise, blame=3"
TEXTS = {"p": " good plot plot", "q": " dull it", "r": " fine bright good", "s": ""}


class Known(StatedWriter):
    """Writes what it is told to; remembers the draws that it was given."""

    def __init__(self, codec: TextCodec, texts: Mapping[str, str], weights: Tensor | None = None) -> None:
        self.codec, self.texts, self.weights = codec, texts, weights
        self.draws: list[Tensor | None] = []

    def write(
        self, prompts: Sequence[str], vectors: Tensor, draws: Tensor | None, temperature: float = 1.0
    ) -> StatedText:
        self.draws.append(draws)
        texts = [self.texts[prompt.split()[-1]] for prompt in prompts]
        tokens = self.codec.continuations(prompts, texts, LENGTHS.prompt, LENGTHS.response)
        weights = None if self.weights is None else self.weights.log().expand(len(prompts), -1, -1)
        return StatedText(tokens, texts, log_weights=weights)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec(str(random_model("gpt2", tmp_path_factory.mktemp("model"))), "model")


class World:
    """A scorer over scripted experts, and what it says of texts."""

    def __init__(self, codec: TextCodec, script: Script = EVEN, measured: bool = True, **settings: float) -> None:
        values = {"prompts": 64, "batch": 3, "temperature": 1.0} | settings
        self.codec, self.preferences = codec, Preferences(dimensions())
        self.experts = ScriptedExperts(SIDES, table_of(script, 1 - 1e-6))
        merger = Merger(self.experts, silent_control(4, CPU), Linear())
        writer = MergedWriter(merger, self.preferences, torch.full((4,), 0.25), codec, LENGTHS)
        self.rewards = SideRewards(self.preferences) if measured else None
        self.references = ReferenceTexts(writer)
        self.scorer = StatedScorer(
            StatedEvaluation(**values),  # type: ignore[arg-type]
            self.preferences,
            self.rewards,
            self.references,
        )

    def sums(
        self, writer: StatedWriter, examples: Sequence[Example], name: str = "ann", seed: int = 0
    ) -> list[MetricSum]:
        return self.scorer.evaluate(writer, examples, name, seed)


def asks(*pairs: tuple[str, str]) -> list[Example]:
    """Return test examples by preference and the last word of the prompt."""
    return [Example("ann", group, f"the {prompt}", "", None, "test") for group, prompt in pairs]


def means(sums: Sequence[MetricSum]) -> dict[tuple[str, str], float]:
    totals: dict[tuple[str, str], tuple[float, float]] = {}
    for one in sums:
        total, n = totals.get((one.name, one.group), (0.0, 0.0))
        totals[one.name, one.group] = total + one.total, n + one.n
    return {key: total / n for key, (total, n) in totals.items()}


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_rewards_are_those_of_the_wanted_sides_against_the_same_reference_text(codec: TextCodec) -> None:
    same: Script = dict.fromkeys(SIDES, ("good", "plot", "it", "it", "it"))
    world = World(codec, same)
    found = means(world.sums(Known(codec, TEXTS), asks((BOTH, "p"), (BOTH, "q"), (QUIET, "q"), (TONE, "r"))))
    # The reference, and the even text, is "good plot it it it": both measures are 1.
    p, q, r = (1, 2), (0, 0), (3, 0)

    def sides(measured: tuple[int, int]) -> list[float]:
        tone, events = (logistic(value - 1) for value in measured)
        return [tone, 1 - tone, events, 1 - events]

    both = [(sides(m)[0] + sides(m)[2]) / 2 for m in (p, q)]
    assert found["unseen/reward", BOTH] == pytest.approx(sum(both) / 2)
    assert found["unseen/reward", QUIET] == pytest.approx((sides(q)[1] + sides(q)[3]) / 2)
    assert found["unseen/reward", TONE] == pytest.approx((sides(r)[0] + 3 * sides(r)[1]) / 4)
    assert found["unseen/reward_tone", BOTH] == pytest.approx((sides(p)[0] + sides(q)[0]) / 2)
    assert found["unseen/reward_topic", BOTH] == pytest.approx((sides(p)[2] + sides(q)[2]) / 2)
    assert found["unseen/reward_tone", QUIET] == pytest.approx(sides(q)[1])
    # Wins over the even text by the plain measures: 3/2 against 1, 0 against 1; 0 against -1; -3 * 2/4 against -1/2.
    assert found["unseen/win_rate", BOTH] == 0.5
    assert found["unseen/win_rate", QUIET] == 1.0
    assert found["unseen/win_rate", TONE] == 0.0
    # As wanted: both of p, none of q (which is on no side), the lighter one of r.
    assert found["unseen/satisfied", BOTH] == 0.5
    assert found["unseen/satisfied", QUIET] == 0.0
    assert found["unseen/satisfied", TONE] == 0.25
    assert found["unseen/length", BOTH] == pytest.approx((4 + 3) / 2)


def test_equal_texts_are_a_draw(codec: TextCodec) -> None:
    world = World(codec, dict.fromkeys(SIDES, ("good", "plot", "it", "it", "it")))
    found = means(world.sums(Known(codec, {"p": "good plot it it it"}), asks((BOTH, "p"), (TONE, "p"))))
    for group in (BOTH, TONE):
        assert found["unseen/win_rate", group] == 0.5
        assert found["unseen/reward", group] == pytest.approx(0.5)


def test_a_dimension_that_is_left_alone_has_no_reward_there(codec: TextCodec) -> None:
    sums = World(codec).sums(Known(codec, TEXTS), asks((TONE, "p"), (BOTH, "q"), (TONE, "r")))
    assert {each.group for each in sums if each.name == "unseen/reward_tone"} == {TONE, BOTH}
    assert {each.group for each in sums if each.name == "unseen/reward_topic"} == {BOTH}
    assert all(math.isfinite(each.total) and each.n > 0 for each in sums)
    (events,) = (each for each in sums if each.name == "unseen/reward_topic")
    assert events.n == 1.0


def test_the_even_text_is_that_of_the_experts_that_are_wanted(codec: TextCodec) -> None:
    script: Script = {"praise": ["good"], "blame": ["dull"], "moving": ["good"], "still": ["dull"]}
    world = World(codec, script)
    praising, wordless = Known(codec, {"p": " good good"}), Known(codec, {"p": " it"})
    # For the one "good" five times, for the other "dull" five times, of which the measure says 0.
    assert means(world.sums(praising, asks((BOTH, "p"))))["unseen/win_rate", BOTH] == 0.0
    assert means(world.sums(wordless, asks((QUIET, "p"))))["unseen/win_rate", QUIET] == 0.5


def test_perplexity_is_the_base_s_of_the_very_tokens(codec: TextCodec) -> None:
    script: Script = {"praise": ["good the"], "blame": ["dull"], "moving": ["plot", "good"], "still": ["it"]}
    world = World(codec, script)
    world.experts.table = table_of(script, 0.7)
    sums = world.sums(Known(codec, TEXTS), asks((BOTH, "p"), (QUIET, "q"), (QUIET, "s")))
    base, nll, count = world.experts.table.exp().mean(0), 0.0, 0
    for prompt in ("p", "q", "s"):
        tokens = [*(WORDS.index(word) for word in TEXTS[prompt].split()), 0]
        nll -= sum(float(base[place % 2, token].log()) for place, token in enumerate(tokens))
        count += len(tokens)
    own = [each for each in sums if each.name == "unseen/base_nll"]
    assert sum(each.n for each in own) == count == 4 + 3 + 1
    assert sum(each.total for each in own) == pytest.approx(nll, rel=1e-5)
    told = over_preferences({"unseen/base_nll": nll / count}, sums)
    assert told["unseen/perplexity"] == pytest.approx(math.exp(nll / count))


def test_the_worst_preference_is_told(codec: TextCodec) -> None:
    sums = [MetricSum("unseen/reward", "a", 3.0, 4.0), MetricSum("unseen/reward", "b", 1.0, 4.0)]
    assert over_preferences({"x": 1.0}, sums) == {"x": 1.0, "unseen/reward_worst": 0.25}


def test_weights_are_means_over_a_text_s_own_tokens(codec: TextCodec) -> None:
    weights = torch.tensor([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25] * 4, [0, 0, 0, 1], [0, 1, 0, 0]])[None]
    world = World(codec)
    sums = world.sums(Known(codec, TEXTS, weights), asks((BOTH, "q"), (TONE, "s")))
    found = means(sums)
    # "dull it" and its end are three tokens, and the empty text is its end alone.
    expected = {"praise": 1.75 / 3, "blame": 0.75 / 3, "moving": 0.25 / 3, "still": 0.25 / 3}
    for name, value in expected.items():
        assert found[f"unseen/weight_{name}", BOTH] == pytest.approx(value)
        assert found[f"unseen/weight_{name}", TONE] == pytest.approx(0.5 if name in TONE else 0.0)
    assert found["unseen/weight_entropy", BOTH] == pytest.approx((math.log(2) + 0 + math.log(4)) / 3)
    assert found["unseen/weight_entropy", TONE] == pytest.approx(math.log(2))
    assert not any("weight" in each.name for each in world.sums(Known(codec, TEXTS), asks((BOTH, "q"))))


def draws_of(world: World, examples: Sequence[Example], name: str = "ann", seed: int = 0) -> Tensor:
    writer = Known(world.codec, TEXTS)
    world.sums(writer, examples, name, seed)
    given = [each for each in writer.draws if each is not None]
    assert len(given) == len(writer.draws)
    return torch.cat(given)


def test_all_arms_write_with_the_same_draws(codec: TextCodec) -> None:
    examples = asks(*[(BOTH, prompt) for prompt in "pqrsp"])
    one, other = World(codec), World(codec, batch=2)
    first = draws_of(one, examples)
    assert first.shape == (5, LENGTHS.response) and len({tuple(row) for row in first.tolist()}) == 5
    assert torch.equal(first, draws_of(one, examples))
    assert torch.equal(first, draws_of(other, examples))
    assert torch.equal(first[:3], draws_of(other, examples[:3]))
    assert not torch.equal(first, draws_of(one, examples, name="bob"))
    assert not torch.equal(first, draws_of(one, examples, seed=1))
    likeliest, writer = World(codec, temperature=0.0), Known(codec, TEXTS)
    likeliest.sums(writer, examples)
    assert writer.draws == [None, None]


def test_texts_are_those_that_are_scored(codec: TextCodec) -> None:
    examples = asks((BOTH, "p"), (QUIET, "q"), (TONE, "r"), (BOTH, "s"))
    world = World(codec, batch=3)
    merger = Merger(world.experts, silent_control(4, CPU), Linear())
    world.experts.table = table_of(EVEN, 0.5)
    writer = MergedWriter(merger, world.preferences, torch.full((4,), 0.25), codec, LENGTHS)
    texts = world.scorer.texts(writer, examples, "ann", 0)
    assert len(set(texts)) > 1
    known = Known(codec, dict(zip("pqrs", texts, strict=True)))
    assert world.scorer.texts(known, examples, "ann", 0) == texts
    own, again = (means(world.sums(each, examples)) for each in (writer, known))
    assert all(own[key] == pytest.approx(value) for key, value in again.items() if "reward" in key[0])
    assert len(known.draws) == 4 and all(each is not None for each in known.draws)


def test_batches_change_no_number(codec: TextCodec) -> None:
    examples = asks((BOTH, "p"), (QUIET, "q"), (TONE, "r"), (BOTH, "s"), (QUIET, "p"))
    found = [means(World(codec, batch=size).sums(Known(codec, TEXTS), examples)) for size in (1, 3, 64)]
    assert found[0] == pytest.approx(found[1])
    assert found[0] == pytest.approx(found[2])


def test_reference_texts_are_a_prompt_s_own_and_written_once(codec: TextCodec) -> None:
    world = World(codec)
    assert world.rewards is not None
    once = world.references.measured(world.rewards, ["a film", "it", "a film"])
    assert torch.equal(once[0], once[2])
    calls = world.experts.calls
    assert torch.equal(world.references.measured(world.rewards, ["it"])[0], once[1])
    assert world.experts.calls == calls
    fresh = World(codec)
    assert fresh.rewards is not None
    assert torch.equal(fresh.references.measured(fresh.rewards, ["it"])[0], once[1])
    world.references.forget()
    world.experts.table = table_of(dict.fromkeys(SIDES, ("plot",)), 1 - 1e-6)
    assert world.references.measured(world.rewards, ["it"]).tolist() == [[0.0, 5.0]]


def test_other_experts_are_compared_with_their_own_texts(codec: TextCodec) -> None:
    world, writer = World(codec, dict.fromkeys(SIDES, ("it",))), Known(codec, {"p": " good"})
    examples = asks((BOTH, "p"))
    assert means(world.sums(writer, examples))["unseen/win_rate", BOTH] == 1.0
    world.experts.table = table_of(dict.fromkeys(SIDES, ("good",)), 1 - 1e-6)
    world.references.forget()
    world.scorer.forget()
    assert means(world.sums(writer, examples))["unseen/win_rate", BOTH] == 0.0


def test_only_what_leaves_something_to_decide_is_written_to(codec: TextCodec) -> None:
    world = World(codec, prompts=3)
    tested = asks(
        ("praise", "p"),
        (BOTH, "q"),
        ("", "r"),
        ("all", "p"),
        (TONE, "r"),
        ("blame=0.5, praise=0", "p"),
        (QUIET, "p"),
        (BOTH, "s"),
    )
    chosen = world.scorer.chosen(client(test=tested))
    assert [(each.group, each.prompt) for each in chosen] == [(BOTH, "the q"), (TONE, "the r"), (QUIET, "the p")]
    assert all(each.split == "test" for each in chosen)


def test_without_measures_texts_have_no_worth_but_a_likelihood(codec: TextCodec) -> None:
    world = World(codec, measured=False)
    sums = world.sums(Known(codec, TEXTS, torch.full((1, 5, 4), 0.25)), asks((BOTH, "p")))
    assert {each.name for each in sums} == {
        *(f"unseen/{name}" for name in ("base_nll", "length", "weight_entropy")),
        *(f"unseen/weight_{side}" for side in SIDES),
    }
    assert world.scorer.bounded_metrics == {f"unseen/weight_{side}" for side in SIDES}
    names = ("reward", "win_rate", "satisfied", "reward_tone", "reward_topic")
    assert World(codec).scorer.bounded_metrics == world.scorer.bounded_metrics | {f"unseen/{name}" for name in names}


def test_bounded_metrics_are_bounded(codec: TextCodec) -> None:
    world = World(codec)
    sums = world.sums(Known(codec, TEXTS, torch.full((1, 5, 4), 0.25)), asks((BOTH, "p"), (QUIET, "r"), (TONE, "s")))
    bounded = [each for each in sums if each.name in world.scorer.bounded_metrics]
    assert {each.name for each in bounded} == world.scorer.bounded_metrics
    assert all(0 <= each.total <= each.n + 1e-9 for each in bounded)


def test_fixed_weights_are_the_even_ones_of_the_wanted(codec: TextCodec, tmp_path: Path) -> None:
    told: list[Told] = []

    class Spy(MergedWriter):
        def write_told(self, prompts: Sequence[str], given: Told, *args: object, **more: object) -> StatedText:  # type: ignore[override]
            told.append(given)
            return super().write_told(prompts, given, *args, **more)  # type: ignore[arg-type]

    world = World(codec)
    merger = Merger(world.experts, silent_control(4, CPU), Linear())
    spy = ReferenceTexts(Spy(merger, world.preferences, torch.full((4,), 0.25), codec, LENGTHS))
    vectors = torch.tensor([[1.0, 0.0, 1.0, 0.0], [3.0, 1.0, 1.0, 0.0]])
    spy.even(["the", "it"], vectors, None, 1.0)
    assert torch.allclose(told[0].fixed, torch.tensor([[0.5, 0, 0.5, 0], [1 / 3, 1 / 3, 1 / 3, 0]]))
    assert torch.equal(told[0].active, vectors > 0)
    assert replace(told[0], fixed=torch.zeros(2, 4)).even().fixed.tolist() == told[0].fixed.tolist()
