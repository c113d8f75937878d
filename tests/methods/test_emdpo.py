"""The method's settings: phases in order, and combinations that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedalign.data.federated import Kind
from fedalign.errors import UserError
from fedalign.methods.em import EMPhase
from fedalign.methods.emdpo import EMDPO
from fedalign.methods.start_phase import StartPhase
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_heads import HeadTypes
from tests.language_models import random_model

from .ranking_worlds import PROBE, adapters, em, phases, settings

REFUSED = {
    "types that begin alike": (("method/start=equal",), "method/start=equal: types that begin alike stay alike"),
    "types drawn in one place": (("method/start=random", "method.start.scale=0"), r"method\.start\.scale=0"),
    "clusters of nothing": (("method/assignment=clusters",), "Clusters keeps the clusters of the start"),
    "one type of several": (("method/assignment=together",), r"set method\.types=1"),
    "names of other types": (("method/assignment=known",), "they must be as many"),
    "no type": (("method.types=0",), r"method\.types=0"),
    "mass of nothing": (("method.least_mass=0",), r"method\.least_mass=0"),
    "temper of nothing": (("method.assignment.temper=0",), r"method\.assignment\.temper=0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(name: str) -> None:
    overrides, said = REFUSED[name]
    with pytest.raises(UserError, match=said) as refusal:
        settings(*overrides)
    assert "\n" not in str(refusal.value)


def test_a_network_that_compares_is_refused() -> None:
    with pytest.raises(UserError, match="model is a GPOModel; choose model=reward, model=linear_utility or model=gpt2"):
        phases("model=gpo")


def test_weights_by_judgments_are_refused_where_contributions_are_clipped() -> None:
    with pytest.raises(UserError, match=r"method\.weight=judgments: .*set method\.weight=uniform"):
        phases("method.weight=judgments", private=True)
    assert phases("method.weight=judgments")
    assert phases("method.weight=uniform", private=True)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("method/start=probe",), [StartPhase, EMPhase]),
        (("method/start=deltas",), [StartPhase, EMPhase]),
        (("method/start=random",), [EMPhase]),
        (("method/start=probe", "method.types=1", "method/assignment=together"), [EMPhase]),
        (("method/start=equal", "method.start.demonstration=true"), [EMPhase]),
    ],
)
def test_a_start_that_asks_clients_is_a_phase_of_its_own(overrides: tuple[str, ...], expected: list[type]) -> None:
    assert [type(phase) for phase in phases(*overrides)] == expected


def test_types_are_what_the_model_says(tmp_path: Path) -> None:
    assert isinstance(em().model, HeadTypes)
    phase, model = adapters(random_model("gpt2", tmp_path))
    assert isinstance(model, AdapterTypes)
    assert model.beta == phase.method.beta


def test_what_a_run_shows_and_chooses_by() -> None:
    method = settings("method/start=probe", *PROBE).method
    assert isinstance(method, EMDPO)
    assert method.kind is Kind.RANKINGS
    assert method.headline == "test/accuracy"
    # Never of test data: judgments that nothing was trained on.
    assert method.selection == "train/log_likelihood"
