"""Which runs belong together and what they are called."""

import itertools
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fedalign.report.arms import Arm, differing_keys, flatten, group_runs, labels, read_run

MakeRun = Callable[..., Path]


def arms_of(*paths: Path) -> list[Arm]:
    return group_runs([read_run(path) for path in paths])


def names(*settings: dict[str, str]) -> list[str]:
    return labels(settings, differing_keys(settings))


def test_flatten_writes_values_as_text() -> None:
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": "x", "f": [1, "ü"], "g": True, "h": {}}
    assert flatten(nested) == {"a.b.c": "1", "a.d": "null", "e": "x", "f": '[1, "ü"]', "g": "true"}


def test_seeds_names_places_and_loggers_do_not_make_an_arm(make_run: MakeRun) -> None:
    paths = [make_run(f"run{seed}", seed=seed) for seed in (3, 1)]
    paths.append(make_run("other", seed=2, settings={"logger._target_": "fedalign.report.loggers.WandbLogger"}))
    (arm,) = arms_of(*paths)
    assert arm.label == "pluralllm" and arm.settings == {}
    assert list(arm.runs) == [3, 1, 2]


def test_arms_are_in_order_of_their_first_run(make_run: MakeRun) -> None:
    paths = [
        make_run(f"{prior}{seed}", seed=seed, settings={"method.prior": prior})
        for seed in (1, 2)
        for prior in ("none", "federated")
    ]
    arms = arms_of(*paths)
    assert [arm.label for arm in arms] == ["prior=none", "prior=federated"]
    assert [list(arm.runs) for arm in arms] == [[1, 2], [1, 2]]
    assert arms[0].settings == {"method.prior": "none"}


def test_of_two_runs_with_one_seed_the_later_counts(make_run: MakeRun) -> None:
    (arm,) = arms_of(make_run("old", score=0.5), make_run("new", score=0.75))
    assert arm.runs[1].directory.name == "new"
    assert arm.values("unseen/alignment_score")[1] > 0.7


def test_values_leave_out_seeds_that_lack_the_metric(make_run: MakeRun) -> None:
    (arm,) = arms_of(make_run("run"))
    assert arm.values("unseen/perplexity") == {}


def test_a_method_name_is_enough_whatever_else_comes_with_it() -> None:
    first = {"method.name": "uniform", "method._target_": "fedalign.methods.uniform.Uniform"}
    second = {"method.name": "dpo", "method._target_": "fedalign.methods.dpo.DPO", "method.beta": "0.1"}
    assert names(first, second) == ["method=uniform", "method=dpo"]


def test_an_arm_is_called_by_no_more_than_tells_it_apart() -> None:
    uniform = {"method.name": "uniform", "method.prior": "none"}
    plain = {"method.name": "pluralllm", "method.prior": "none"}
    prior = {"method.name": "pluralllm", "method.prior": "federated"}
    assert names(uniform, plain, prior) == [
        "method=uniform",
        "method=pluralllm, prior=none",
        "method=pluralllm, prior=federated",
    ]


def test_a_class_is_called_by_its_own_name_unless_two_are_called_so() -> None:
    by_group = {"partition._target_": "fedalign.data.partition.ByGroup", "partition.unseen": "5"}
    pooled = {"partition._target_": "fedalign.data.partition.Pooled"}
    assert names(by_group, pooled) == ["partition=ByGroup", "partition=Pooled"]
    mine, yours = {"encoder._target_": "mine.Encoder"}, {"encoder._target_": "yours.Encoder"}
    assert names(mine, yours) == ["encoder=mine.Encoder", "encoder=yours.Encoder"]


def test_a_key_is_written_in_full_when_its_last_part_is_not_clear() -> None:
    grid = [{"local.lr": a, "server.lr": b} for a, b in itertools.product(("1", "2"), ("1", "2"))]
    assert names(*grid)[1] == "local.lr=1, server.lr=2"


def test_a_key_that_only_some_have() -> None:
    assert names({"a.x": "1"}, {}) == ["x=1", "otherwise"]


SETTINGS = st.dictionaries(
    st.sampled_from(["method.name", "method._target_", "method.lr", "server.lr", "seedless", "a.b.name"]),
    st.sampled_from(["p.A", "q.A", "1", "null", "x"]),
)


@given(st.lists(SETTINGS, min_size=2, max_size=8, unique_by=lambda own: tuple(sorted(own.items()))))
def test_labels_are_unique(settings: list[dict[str, str]]) -> None:
    found = names(*settings)
    assert len(set(found)) == len(settings)
    assert all(found)
