"""Config nodes become typed objects, and every mistake is one line that names the key, the value and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fedalign.build import build
from fedalign.errors import UserError
from fedalign.federation.sampling import FixedSampler, FractionSampler, PoissonSampler, Sampler

POISSON = {"_target_": "fedalign.federation.sampling.PoissonSampler", "rate": 0.5}


@dataclass(frozen=True)
class Leaves:
    """One field of every kind that configs use."""

    count: Annotated[int, Field(ge=1)]
    share: float
    mode: Literal["mean", "sum"]
    names: tuple[str, ...] | None
    chosen: tuple[str, ...] | Annotated[int, Field(ge=0)] | None
    on: bool


@dataclass(frozen=True)
class Nested:
    """Objects inside an object: one that must be there, one that need not."""

    sampler: Sampler
    spare: Sampler | None
    fixed: FixedSampler


LEAVES: dict[str, Any] = {"count": 2, "share": 0.5, "mode": "sum", "names": ["a", "b"], "chosen": 3, "on": True}
NESTED: dict[str, Any] = {"sampler": POISSON, "spare": None, "fixed": {"size": 2}}


def refused(node: Any, expected: type, key: str = "here") -> str:
    """Return the message of the refusal, which must be one line."""
    with pytest.raises(UserError) as caught:
        build(node, expected, key)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_leaves_of_every_kind() -> None:
    assert build(LEAVES, Leaves, "") == Leaves(2, 0.5, "sum", ("a", "b"), 3, True)


@pytest.mark.parametrize("chosen", [None, 0, ["x"], []])
def test_every_member_of_a_union_is_taken(chosen: Any) -> None:
    expected = tuple(chosen) if isinstance(chosen, list) else chosen
    assert build({**LEAVES, "chosen": chosen}, Leaves, "").chosen == expected


def test_a_whole_number_will_do_for_a_float() -> None:
    built = build({**LEAVES, "share": 1}, Leaves, "")
    assert built.share == 1.0
    assert isinstance(built.share, float)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("count", 0, "greater than or equal to 1"),
        ("count", 1.5, "valid integer"),
        ("count", 2.0, "valid integer"),
        ("count", True, "valid integer"),
        ("count", "2", "valid integer"),
        ("count", None, "valid integer"),
        ("share", "much", "valid number"),
        ("share", False, "valid number"),
        ("mode", "median", "'mean' or 'sum'"),
        ("mode", "Sum", "'mean' or 'sum'"),
        ("names", "a", "valid array"),
        ("names", [1], "valid string"),
        ("names", {"a": 1}, "valid array"),
        ("chosen", -1, "greater than or equal to 0"),
        ("on", "yes", "valid boolean"),
        ("on", 1, "valid boolean"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_it_should_be(field: str, value: Any, reason: str) -> None:
    message = refused({**LEAVES, field: value}, Leaves, "group")
    assert message.startswith(f"group.{field}={value!r} is not valid: it should ")
    assert reason in message


def test_a_misspelt_key_is_told_the_nearest_one() -> None:
    assert refused({**LEAVES, "cuont": 2}, Leaves, "group") == "unknown key group.cuont; did you mean 'count'?"


def test_a_strange_key_is_told_the_known_ones() -> None:
    message = refused({**LEAVES, "zzz": 2}, Leaves, "")
    assert message.startswith("unknown key zzz; known: ")
    assert all(repr(name) in message for name in LEAVES)


def test_a_missing_key_is_named() -> None:
    node = {name: value for name, value in LEAVES.items() if name != "mode"}
    assert refused(node, Leaves, "group") == "missing key group.mode; set it"


def test_a_target_chooses_the_class() -> None:
    built = build(NESTED, Nested, "")
    assert built == Nested(PoissonSampler(0.5), None, FixedSampler(2))


def test_what_need_not_be_there_may_be() -> None:
    whole = {"_target_": "fedalign.federation.sampling.FractionSampler", "fraction": 1}
    assert build({**NESTED, "spare": whole}, Nested, "").spare == FractionSampler(1.0)


def test_mistakes_deep_inside_name_the_whole_key() -> None:
    rate = {**POISSON, "rate": 1.5}
    assert "top.sampler.rate=1.5 is not valid" in refused({**NESTED, "sampler": rate}, Nested, "top")
    assert refused({**NESTED, "fixed": {}}, Nested, "top") == "missing key top.fixed.size; set it"


@pytest.mark.parametrize("value", [None, 5, "poisson", ["poisson"]])
def test_a_value_is_not_a_group(value: Any) -> None:
    assert refused({**NESTED, "sampler": value}, Nested, "top") == f"top.sampler={value!r} must be a group of keys"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", "is not a class of fedalign"),
        ("fedalign_evil.sampling.PoissonSampler", "is not a class of fedalign"),
        (5, "is not a class of fedalign"),
        (None, "is not a class of fedalign"),
        ("fedalign.nowhere.PoissonSampler", "cannot be imported"),
        ("fedalign.federation.sampling.Poisson", "cannot be imported"),
        ("fedalign.", "cannot be imported"),
        ("fedalign..sampling", "cannot be imported"),
        ("fedalign.federation.server_optimizer.FedAvg", "is not a Sampler"),
        ("fedalign.federation.sampling.Sampler", "is not a Sampler"),
        ("fedalign.federation.sampling.np", "is not a Sampler"),
    ],
)
def test_only_fitting_classes_of_fedalign_are_built(target: Any, reason: str) -> None:
    message = refused({**NESTED, "sampler": {**POISSON, "_target_": target}}, Nested, "top")
    assert message.startswith("top.sampler._target_=")
    assert reason in message


def test_an_abstract_group_needs_a_target() -> None:
    assert refused({**NESTED, "sampler": {"rate": 0.5}}, Nested, "top") == "top.sampler._target_ is missing"


def test_a_check_across_keys_speaks_for_itself() -> None:
    node = {"width": 6, "layers": 1, "heads": 4, "feedforward": 6, "embed_depth": 1, "input_scale": "features"}
    from fedalign.models.gpo import GPOModel

    assert "model.heads=4 does not divide model.width=6" in refused(node, GPOModel, "model")
