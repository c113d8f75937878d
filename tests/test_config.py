"""Composing, checking and expanding configurations."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.config import RunConfig, conf_directory, expand, keys, options, parse, resolve, to_json
from fedalign.errors import UserError


def refused(*overrides: str) -> str:
    """Return the message of the refusal, which must be one line."""
    with pytest.raises(UserError) as caught:
        parse(resolve(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_overrides_reach_the_typed_configuration() -> None:
    config = parse(resolve(["seed=7", "federation.rounds=3", "federation/sampler=poisson", "output='a, b'"]))
    assert isinstance(config, RunConfig)
    assert (config.seed, config.federation.rounds, config.output) == (7, 3, "a, b")
    assert type(config.federation.sampler).__name__ == "PoissonSampler"


def test_the_name_follows_the_method() -> None:
    assert parse(resolve(["method=uniform"])).name == "uniform"
    assert parse(resolve(["method=uniform", "name=floor"])).name == "floor"


def test_resolving_twice_is_resolving_once() -> None:
    resolved = resolve(["seed=2"])
    assert resolve(["seed=2"]) == resolved
    assert json.loads(json.dumps(resolved)) == resolved


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fedration.rounds=1", "unknown key fedration.rounds; did you mean 'federation.rounds'?"),
        ("federation.round=1", "unknown key federation.round; did you mean 'federation.rounds'?"),
        ("methods=uniform", "unknown key methods; did you mean 'method'?"),
        ("method=Pluralllm", "method=Pluralllm: no such option; did you mean 'pluralllm'?"),
        ("federation/sampler=poison", "federation/sampler=poison: no such option; did you mean 'poisson'?"),
        ("experiment=zzz", "experiment=zzz: no such option"),
        ("+extra=1", "unknown key extra; known: "),
        ("~seed", "missing key seed; set it"),
        ("seed=???", "missing key seed; set it"),
        ("seed=-1", "seed=-1 is not valid: it should be greater than or equal to 0"),
        ("seed=true", "seed=True is not valid: it should be a valid integer"),
        ("seed='3'", "seed='3' is not valid: it should be a valid integer"),
        ("name=a/b", "name='a/b' is not valid: it should match pattern"),
        ("name=''", "name='' is not valid: it should have at least 1 character"),
        ("federation.rounds=1.5", "federation.rounds=1.5 is not valid: it should be a valid integer"),
        ("method.prior=both", "method.prior='both' is not valid: it should be 'none' or 'federated'"),
        ("federation.sampler=poisson", "federation.sampler='poisson' must be a group of keys"),
        ("federation.sampler=null", "federation.sampler=None must be a group of keys"),
        ("method.local={stpes: 1}", "method.local holds no such key"),
        ("seed=${nope}", "cannot read seed=${nope}: Interpolation key 'nope' not found"),
        ("seed=1,2", "cannot read seed=1,2: Ambiguous value"),
        ("seed=range(1,3)", "'seed=range(1,3)' requires --multirun"),
        ("seed", "missing EQUAL"),
        ("seed={", "cannot read seed={"),
        ("method=null", "cannot read method=null: Config group override must be a string"),
        ("federation=5", "cannot read federation=5: Config group override must be a string"),
        ("data._target_=os.system", "data._target_='os.system' is not a class of fedalign"),
    ],
)
def test_every_mistake_is_one_line(override: str, message: str) -> None:
    assert message in refused(override)


def test_an_empty_map_is_added_to_with_a_plus() -> None:
    message = refused("privacy=central", "privacy.clip.scales={mixture/: 2}")
    assert message == "privacy.clip.scales is empty; add to it with a plus, as in +privacy.clip.scales={key: value}"


def test_a_part_that_the_choice_does_not_have() -> None:
    message = refused("privacy=none", "privacy/randomness=seeded")
    assert message.startswith("privacy/randomness: the privacy that is chosen has no such part; choose another")


def test_a_key_of_an_empty_map_is_added_with_a_plus() -> None:
    message = refused("privacy=central", "privacy.clip.phases.gpo=2")
    assert message == "privacy.clip.phases is empty; add the key with a plus, as in +privacy.clip.phases.gpo=value"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data=synthetic_pairs",), "method=pluralllm learns from survey, data (SyntheticPairs) is made for pairs"),
        (("partition=strict",), "method=pluralllm learns from survey, partition (ByCategory) is made for pairs"),
        (("method=fedvpa", "data=synthetic_survey"), "method=fedvpa learns from pairs, data (SyntheticSurvey) is made"),
        (("method=fedvpa", "partition=iid"), "method=fedvpa learns from pairs, partition (IID) is made for survey"),
        (("method=fedvpa", "model=reward"), "method=fedvpa trains a VariationalSpec, model is a RewardSpec"),
        (("model=variational",), "method=pluralllm trains a GPOModel, model is a VariationalSpec"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(overrides: tuple[str, ...], message: str) -> None:
    said = refused(*overrides)
    assert said.startswith(message)
    assert "choose another" in said


def test_a_method_without_a_network_takes_any_model() -> None:
    parse(resolve(["method=uniform", "model=reward"]))
    parse(resolve(["method=length_rule", "model=variational"]))


def test_a_change_to_local_training_goes_with_any_method_that_has_some() -> None:
    for method in ("pluralllm", "fedvpa", "fedavg_bt"):
        assert resolve([f"method={method}"])["method"]["local"]["proximal_mu"] == 0.0
        assert resolve([f"method={method}", "local=fedprox"])["method"]["local"]["proximal_mu"] == 0.01
    assert "unknown key method.local" in refused("method=uniform", "local=fedprox")


def test_of_many_overrides_the_one_that_cannot_be_read_is_named() -> None:
    assert refused("seed=1", "name=a(", "federation.rounds=2").startswith("cannot read name=a(: ")


def test_keys_of_the_chosen_option_are_suggested() -> None:
    assert "did you mean 'federation.sampler.rate'?" in refused(
        "federation/sampler=poisson", "federation.sampler.rat=1"
    )


def test_what_travels_is_canonical_and_leaves_the_server_s_own_affairs_out() -> None:
    one = resolve(["seed=3", "output=here", "name=one", "logger=tensorboard"])
    other = dict(reversed(resolve(["output=there", "seed=3", "name=other"]).items()))
    assert to_json(one) == to_json(other)
    assert json.loads(to_json(one)).keys() == one.keys() - {"output", "name", "logger"}
    assert to_json(one) != to_json({**one, "seed": 4})


VALUES = st.lists(st.integers(0, 99).map(str), min_size=1, max_size=4, unique=True)


@given(sweeps=st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=3))
def test_a_sweep_is_the_product_of_its_values(sweeps: list[tuple[list[str], bool]]) -> None:
    """The first key varies slowest, however the values are written."""
    overrides = [
        f"key{place}=choice({','.join(values)})" if as_choice else f"key{place}={','.join(values)}"
        for place, (values, as_choice) in enumerate(sweeps)
    ]
    columns = [[f"key{place}={value}" for value in values] for place, (values, _) in enumerate(sweeps)]
    assert expand(overrides) == [list(job) for job in itertools.product(*columns)]


@pytest.mark.parametrize(
    ("override", "jobs"),
    [
        ("seed=range(1,4)", ["seed=1", "seed=2", "seed=3"]),
        ("seed=range(1,8,3)", ["seed=1", "seed=4", "seed=7"]),
        ("seed=5", ["seed=5"]),
        ("method=uniform,question_mean", ["method=uniform", "method=question_mean"]),
        ("a=[1,2],[3]", ["a=[1,2]", "a=[3]"]),
        ("name='a,b'", ["name='a,b'"]),
        ("seed=range(0)", []),
    ],
)
def test_hydra_s_grammar_of_sweeps(override: str, jobs: list[str]) -> None:
    assert expand([override]) == [[job] for job in jobs]


def test_nothing_to_sweep_is_one_job() -> None:
    assert expand([]) == [[]]


@pytest.mark.parametrize("override", ["seed", "seed=interval(0,1)", "method=glob(*)", "seed=choice(1"])
def test_a_sweep_that_cannot_be_read_is_one_line(override: str) -> None:
    with pytest.raises(UserError) as caught:
        expand([override])
    assert "\n" not in str(caught.value)


def test_every_option_is_listed_with_the_first_line_of_its_file() -> None:
    found = options()
    assert found["federation/sampler"]["poisson"] == "Every training client by its own coin"
    listed = {f"{group}/{name}" for group, names in found.items() for name in names}
    root = conf_directory()
    assert listed == {p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*/*.yaml")}
    assert all(line for names in found.values() for line in names.values())


def test_keys_are_dotted_paths_of_groups_and_leaves() -> None:
    assert list(keys({"a": {"b": 1, "c": {"d": None}}, "e": [2]})) == ["a", "a.b", "a.c", "a.c.d", "e"]


def test_the_wheel_s_own_conf_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "fedalign"
    package.mkdir(parents=True)
    monkeypatch.setattr("fedalign.config.__file__", str(package / "config.py"))
    assert conf_directory() == package.parent / "conf"
    (package / "conf").mkdir()
    assert conf_directory() == package / "conf"
