"""What can be stated: words and weights as vectors, what nothing means, and what texts are worth to every side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from fedalign.errors import UserError
from fedalign.methods.merging import Merging
from fedalign.methods.single_expert import SingleExpert
from fedalign.methods.stated_preference import Dimension, Preferences, SideRewards, combined
from fedalign.models.control import log_weights
from fedalign.models.text import TextCodec
from tests.language_models import random_model

from .stages import Counts
from .stated import SIDES, dimensions, method, setting

CPU = torch.device("cpu")
EVEN = torch.full((4,), 0.25)


@pytest.fixture(scope="module")
def preferences() -> Preferences:
    return Preferences(dimensions())


def named(*sides: str) -> dict[str, Dimension]:
    return {"tone": Dimension(sides, None, 1.0)}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("praise", [1, 0, 0, 0]),
        ("still, praise", [1, 0, 0, 1]),
        ("  praise ,moving  ", [1, 0, 1, 0]),
        ("praise=0.7, still=0.3", [0.7, 0, 0, 0.3]),
        ("praise=2,blame", [2, 1, 0, 0]),
        ("praise = 1e-1 , blame=0", [0.1, 0, 0, 0]),
        ("", [0, 0, 0, 0]),
        ("  ", [0, 0, 0, 0]),
        ("all", [0, 0, 0, 0]),
    ],
)
def test_a_statement_is_a_vector_over_sides(preferences: Preferences, statement: str, expected: list[float]) -> None:
    found = preferences.vector(statement, "key")
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("prase", r"^method\.key=prase: there is no side 'prase'; did you mean 'praise'"),
        ("praise, moveing", r"there is no side 'moveing'; did you mean 'moving'"),
        ("praise, all", r"there is no side 'all'"),
        ("praise,", r"there is no side ''"),
        ("praise, blame, praise", r"praise is stated twice; state it once"),
        ("praise=much", r"'much' is no weight; give a number of at least 0"),
        ("praise=-1", r"'-1' is no weight"),
        ("praise=nan", r"'nan' is no weight"),
        ("praise=inf", r"'inf' is no weight"),
        ("praise=", r"'' is no weight"),
        ("praise=1=2", r"'1=2' is no weight"),
        ("praise=0, blame=0", r"no side has a weight above 0; give one of them more"),
    ],
)
def test_what_is_no_statement_is_said_in_one_line(preferences: Preferences, statement: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        preferences.vector(statement, "method.key")
    assert str(refused.value).startswith(f"method.key={statement}: ")
    assert "\n" not in str(refused.value)


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=4, max_size=4).filter(any))
def test_words_and_vectors_say_the_same(weights: list[float]) -> None:
    own, vector = Preferences(dimensions()), torch.tensor(weights)
    assert torch.equal(own.vector(own.statement(vector), ""), vector)


def test_every_combination_has_a_place_and_nothing_else_does(preferences: Preferences) -> None:
    assert preferences.names == SIDES
    assert preferences.statements == ("praise, moving", "praise, still", "blame, moving", "blame, still")
    said = ["blame, still", "moving, praise", "praise", "praise=0.5, moving=0.5", "", "praise, blame"]
    vectors = torch.stack([preferences.vector(each, "") for each in said])
    assert preferences.numbers(vectors).tolist() == [3, 0, -1, -1, -1, -1]


@pytest.mark.parametrize("sides", [("praise", "praise"), ("praise", "blame", "praise")])
def test_two_sides_of_one_name_are_refused(sides: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^method\.dimensions: two sides are called 'praise'"):
        Preferences(named(*sides))


@pytest.mark.parametrize("name", ["a,b", "a=b", " a", "", "all"])
def test_names_that_cannot_be_stated_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^method\.dimensions: a side is called .*cannot be stated; leave out commas"):
        Preferences(named("praise", name))


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", ".hidden", "."])
def test_names_that_are_no_folders_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^method\.dimensions: a side is called .*leave out / and a dot at the begin"):
        Preferences(named("praise", name))


def test_dimensions_are_at_least_one_and_those_that_are_measured_have_two_sides() -> None:
    with pytest.raises(UserError, match=r"method\.dimensions is empty; give at least one"):
        Preferences({})
    three = Dimension(("a", "b", "c"), Counts(), 1.0)
    with pytest.raises(UserError, match=r"method\.dimensions\.tone\.sides=\['a', 'b', 'c'\]: .*tone\.measure=null"):
        Preferences({"tone": three})
    assert Preferences({"tone": replace(three, measure=None)}).statements == ("a", "b", "c")


# What a control model is told.


@given(
    arrays("float32", (3, 4), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=4, max_size=4).filter(any),
)
def test_fixed_weight_is_on_active_experts_alone_and_somebody_always_is(vectors: object, given: list[float]) -> None:
    wanted, fallback = torch.tensor(vectors), torch.tensor(given) / sum(given)
    told = Preferences(dimensions()).told(wanted, fallback, None, CPU)
    assert bool(told.active.any(1).all())
    assert not bool((told.fixed > 0)[~told.active].any())
    silent = wanted.sum(1) == 0
    assert torch.equal(told.active[~silent], wanted[~silent] > 0)
    assert torch.equal(told.fixed[silent], fallback.expand(int(silent.sum()), 4))
    assert not bool(told.fixed[~silent].any())
    even = told.even()
    assert torch.equal(even.fixed > 0, told.active) and torch.equal(even.active, told.active)
    assert torch.allclose(even.fixed.sum(1), torch.ones(3))
    for each in (told, even):
        weights = log_weights(torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)), each).exp()
        assert torch.allclose(weights.sum(2), torch.ones(3, 2))
        assert not bool(weights[~told.active[:, None].expand(-1, 2, -1)].any())


def test_rows_that_state_nothing_take_the_fallback_whatever_the_control_model_says(preferences: Preferences) -> None:
    fallback = torch.tensor([0.5, 0.0, 0.25, 0.25])
    told = preferences.told(torch.tensor([[0.0] * 4, [1.0, 1.0, 0.0, 0.0]]), fallback, None, CPU)
    weights = log_weights(torch.tensor([9.0, 1.0, -3.0, 0.0]).expand(2, 1, 4), told).exp()
    assert torch.allclose(weights[0, 0], fallback)
    assert torch.allclose(weights[1, 0], torch.tensor([9.0, 1.0, -torch.inf, -torch.inf]).softmax(0))
    assert told.number.tolist() == [-1, -1]
    assert told.opening[0].shape == (2, 0)


def test_a_statement_is_told_in_words_that_end_as_a_sentence(tmp_path: Path) -> None:
    codec = TextCodec(str(random_model("gpt2", tmp_path)), "model")
    own = Preferences(named("good", "bad"))
    told = own.told(torch.tensor([[1.0, 0.5], [1.0, 0.0]]), torch.tensor([0.5, 0.5]), codec, CPU)
    expected = codec.prompts(["good, bad=0.5. ", "good. "], 100)
    assert torch.equal(told.opening[0], expected[0]) and torch.equal(told.opening[1], expected[1])


# What texts are worth.


def test_sides_are_worth_what_bradley_and_terry_say_against_the_reference() -> None:
    scaled = {
        name: replace(each, scale=scale) for (name, each), scale in zip(dimensions().items(), (1.0, 2.5), strict=True)
    }
    rewards = SideRewards(Preferences(scaled))
    rewards.prepare()
    measured = rewards.measured(["p", "p", "p"], ["good fine", "plot", "the"])
    assert measured.tolist() == [[2.0, 0.0], [0.0, 2.5], [0.0, 0.0]]
    reference = torch.tensor([[1.0, 0.0], [1.0, 5.0], [0.0, 0.0]])
    found = rewards.sides(measured, reference)
    up, down = 1 / (1 + torch.tensor([1.0, -1.0]).neg().exp())
    steep = 1 / (1 + torch.tensor(2.5).exp())
    expected = torch.tensor([[up, 1 - up, 0.5, 0.5], [down, 1 - down, steep, 1 - steep], [0.5] * 4])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(rewards.sides(measured, None)[:, 0], torch.sigmoid(measured[:, 0]))
    assert torch.equal(rewards.sides(measured, measured), torch.full((3, 4), 0.5))


def test_a_preference_weighs_its_sides() -> None:
    sides = torch.tensor([[0.8, 0.2, 0.6, 0.4]] * 3)
    vectors = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 3.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.2]])
    assert torch.allclose(combined(sides, vectors), torch.tensor([0.7, 0.25, 0.4]))
    assert torch.allclose(combined(sides, 7 * vectors), combined(sides, vectors))


@given(arrays("float32", (5, 4), elements=st.floats(0, 1, width=32)), st.integers(0, 3))
def test_what_is_worth_the_most_to_one_side_is_worth_the_least_to_the_other(values: object, seed: int) -> None:
    sides = torch.tensor(values)
    vectors: Tensor = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed)) + 0.1
    found = combined(sides, vectors)
    assert bool((found >= sides.amin(1) - 1e-6).all()) and bool((found <= sides.amax(1) + 1e-6).all())


@pytest.mark.parametrize(
    ("otherwise", "fix"), [("", "set a measure"), ("learn from judgments", "set a measure, or learn from judgments")]
)
def test_without_a_measure_the_fix_is_one_that_there_is(otherwise: str, fix: str) -> None:
    with pytest.raises(UserError) as refused:
        SideRewards(Preferences(dimensions(measured=False)), otherwise)
    said = "method.dimensions.tone.measure=null: nothing says what texts are worth"
    assert str(refused.value) == f"{said}; {fix}"


def test_no_other_merging_is_told_to_learn_from_judgments(tmp_path: Path) -> None:
    merging: Merging = SingleExpert(client_prompts=8, batch=3, temperature=1.0)
    own = method(merging=merging, dimensions=dimensions(measured=False))
    with pytest.raises(UserError, match=r"what texts are worth; set a measure$"):
        own.phases(setting(random_model("gpt2", tmp_path)))


def test_the_order_of_sides_is_not_that_of_a_configuration_s_keys() -> None:
    """Nodes read a configuration with sorted keys, and the server and predictions as it was written."""
    turned = Preferences(dict(reversed(dimensions().items())))
    own = Preferences(dimensions())
    assert (turned.names, turned.statements) == (own.names, own.statements)
    assert list(turned.dimensions) == list(own.dimensions)
