"""The laws on experts that are merged token by token: limits, engines, interruption, guarantees, randomness."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedalign.cli import main
from fedalign.config import parse, resolve, to_json
from fedalign.contribution import DELTA
from fedalign.methods.control_learning import Offline
from fedalign.methods.control_phase import CONTROL, ControlPhase
from fedalign.methods.loaded_experts import AdapterExperts
from fedalign.methods.preference_weighting import Even, MinMax, QFair, Weighting
from fedalign.methods.rollouts import uniform
from fedalign.models.experts import Pairs
from fedalign.models.mixing import Linear, LogLinear, Mixing
from fedalign.opened_run import OpenedRun
from fedalign.report.run_directory import RunDirectory
from fedalign.rng import Streams
from fedalign.run import resume, start
from fedalign.run_end import Result
from fedalign.site import open_site
from fedalign.site import setting as site_setting
from tests.methods.scripted_experts import control_phase, controlled, online, transformer
from tests.methods.stated import client, contributions, method, setting, wishes

from .conftest import final_state, residuals
from .pcm_world import SIDES, Merge, overrides_of, world
from .test_engines_agree import separate
from .test_resume import Killed, kill_after, timeless

SEEDED = "privacy/randomness=seeded"
FULL = "federation/sampler=full"
WITHHELD = "privacy/metrics=withheld"
OFFLINE = "method/merging/learning=offline"
FRACTION = ("federation/sampler=fraction", "federation.sampler.fraction=0.5")
GUARANTEES: dict[str, tuple[str, ...]] = {
    "central": ("privacy=central", *FRACTION, SEEDED),
    "central_adaptive": ("privacy=central_adaptive", "privacy.clip.adaptive.count_noise=0.5", *FRACTION, SEEDED),
    "secure_sum": ("privacy=secure_sum", FULL, WITHHELD),
    "distributed": ("privacy=distributed", FULL, WITHHELD, SEEDED),
}
SGD = ("method.merging.local.optimizer=sgd", "method.merging.local.lr=0.5")
"""Where rewards are equal, Adam makes steps of what rounding leaves of gradients."""
SHORT = ("federation.rounds=2", "federation.evaluate_every=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("pcm"))


@pytest.fixture
def merge(tmp_path: Path, folder: Path) -> Merge:
    """Run the tiny federation under more overrides, in a directory of the given name."""

    def runner(name: str, *overrides: str) -> Result:
        return start([*overrides_of(folder, *overrides), f"output={tmp_path / name}"])

    return runner


def phase_of(folder: Path, *overrides: str) -> ControlPhase:
    site = open_site(to_json(resolve(overrides_of(folder, *overrides))), {})
    (found,) = site.phases
    assert isinstance(found, ControlPhase)
    return found


# Law 4: limits.


@pytest.mark.parametrize("mixing", ["linear", "log_linear"])
def test_all_weight_on_one_expert_writes_that_expert_s_text_alone(folder: Path, mixing: str) -> None:
    own = phase_of(folder, f"method/merging/mixing={mixing}")
    own.load(own.initial(Streams(3), {}))
    draws = uniform(range(4), 5)
    prompts = ["the film", "it was", "a plot and", "I liked the ending"]
    told = own.writer(own.initial(Streams(3), {})).told(torch.ones(4, 6))
    texts = []
    for place, side in enumerate(SIDES[:3]):
        fixed = torch.nn.functional.one_hot(torch.full((4,), place), 6).float()
        writer = own.writer(own.initial(Streams(3), {}))
        found = writer.write_told(prompts, replace(told, fixed=fixed), draws)
        alone = AdapterExperts({side: str(folder / side)}).open((side,), setting(folder / "model"))
        assert found.log_weights is not None and found.spoken is not None
        assert torch.equal(found.log_weights[:, 0].exp(), fixed)
        tokens = found.tokens
        pairs = Pairs.of(torch.ones(4, 1, dtype=torch.bool))
        each, _ = alone.advance(pairs, tokens.ids, tokens.attention_mask, None)
        wanted = each[:, 4:-1].gather(2, tokens.ids[:, 5:, None])[..., 0]
        inside = tokens.response_mask[:, 5:].bool()
        assert torch.allclose(found.spoken.chosen[..., place][inside], wanted[inside], atol=1e-5)
        # The token that is drawn is where the expert's own cumulative probabilities pass the uniform number.
        below = each[:, 4].softmax(1).double().cumsum(1)
        picked = tokens.ids[:, 5]
        rows = torch.arange(4)
        assert bool((below[rows, picked] >= draws[:, 0] - 1e-5).all())
        texts.append(found.texts)
    assert texts[0] != texts[1] != texts[2]


def test_without_rounds_weights_are_even_and_nobody_wins(merge: Merge) -> None:
    found = merge("run", "method.merging.rounds=0").summary.metrics
    assert found["unseen/win_rate"] == 0.5
    assert found["unseen/weight_entropy"] == pytest.approx(math.log(3), abs=1e-5)
    assert 0.2 < found["unseen/reward"] < 0.8


@pytest.mark.parametrize("mixing", ["linear", "log_linear"])
def test_what_is_kept_of_experts_is_the_whole_mixture_at_the_tokens(folder: Path, mixing: str) -> None:
    own = phase_of(folder, f"method/merging/mixing={mixing}")
    state = own.initial(Streams(3), {})
    generator = torch.Generator().manual_seed(1)
    own.load({name: t + 0.5 * torch.randn(t.shape, generator=generator) for name, t in state.items()})
    vectors = torch.stack(
        [own.preferences.vector(s, "") for s in ("praise, plain, long", "criticism, ornate=2", "short, long")]
    )
    prompts = ["the film", "it was", "a"]
    batches = {
        1e-6: own.texts.written(prompts, [" good plot", " bad", " very fine and"], vectors),
        1e-5: own.texts.drawn(prompts, vectors, uniform(range(3), 5), 1.0, None),
    }
    for tolerance, batch in batches.items():
        tokens = batch.tokens
        pairs = Pairs.of(batch.told.active)
        each, _ = own.experts.advance(pairs, tokens.ids, tokens.attention_mask, None)
        scores, _, _ = own.network.advance(batch.told, tokens.ids, tokens.attention_mask, None, False)
        logs = scores.masked_fill(~batch.told.active[:, None], -torch.inf).log_softmax(2)
        found, _ = own.texts.log_probabilities(batch, None)
        for place in range(5):
            mixed = own.settings.mixing.next_token(logs[:, 4 + place], each[:, 4 + place], pairs)
            wanted = mixed.gather(1, tokens.ids[:, 5 + place, None])[:, 0]
            inside = batch.mask[:, place] > 0
            assert torch.allclose(found[inside, place], wanted[inside], atol=tolerance)


# Laws 1 and 5: what travels.


@pytest.mark.parametrize("weighting", [Even(), QFair(1.0, 0.1), MinMax(0.5, 3.0)], ids=["even", "q_fair", "min_max"])
@pytest.mark.parametrize("name", ["offline", "rebel", "rloo", "ppo"])
def test_a_template_covers_all_that_is_added_up(folder: Path, name: str, weighting: Weighting) -> None:
    learning = Offline(0.5) if name == "offline" else online(name, share=0.5)
    settings = controlled(learning, transformer(preference="text"), weighting=weighting, personal_bias=True)
    own = control_phase(folder / "model", settings)
    state = own.initial(Streams(3), {})
    full = contributions(own, state, client(rl=wishes("praise, moving", "praise=0.5, still")))
    empty = contributions(own, state, client(rl=wishes("praise")))
    assert set(full.tensors) == set(own.template(state).tensors) and not empty.tensors
    changed = {name.removeprefix(DELTA) for name in full.tensors if name.startswith(DELTA)}
    assert changed == {name for name in state if name.startswith(CONTROL)}


# Law 2.


def test_server_nodes_and_predictions_have_experts_in_one_order(folder: Path) -> None:
    """Configurations travel with sorted keys."""
    resolved = resolve(overrides_of(folder))
    config = parse(resolved)
    (here,) = config.method.phases(site_setting(config))
    there = phase_of(folder)
    assert isinstance(here, ControlPhase)
    assert here.preferences.names == there.preferences.names == SIDES
    assert here.preferences.statements == there.preferences.statements
    assert {name: t.shape for name, t in here.initial(Streams(0), {}).items()} == {
        name: t.shape for name, t in there.initial(Streams(0), {}).items()
    }


def test_what_is_predicted_is_what_nodes_evaluate(merge: Merge, folder: Path) -> None:
    found = merge("run", "method/merging/weighting=min_max", "method.evaluation.temperature=0")
    run = OpenedRun.of(RunDirectory.open(found.directory), parse(RunDirectory.open(found.directory).read_config()))
    own, there = run.phases[-1], phase_of(folder, "method.evaluation.temperature=0")
    assert isinstance(own, ControlPhase)
    vectors = torch.stack([own.preferences.vector(s, "") for s in ("praise, short", "criticism, ornate, long")])
    texts = [each.writer(run.states["control"]).write(["the film"] * 2, vectors, None) for each in (own, there)]
    assert texts[0].texts == texts[1].texts
    assert texts[0].log_weights is not None and texts[1].log_weights is not None
    assert torch.equal(texts[0].log_weights, texts[1].log_weights)


def agree(one: Result, other: Result) -> None:
    largest, mean = residuals(final_state(one, "control"), final_state(other, "control"))
    assert largest <= 1e-6
    assert mean <= 1e-6
    assert other.summary.metrics == pytest.approx(one.summary.metrics, abs=1e-5)


MEMORY = ("method.merging.personal_bias=true", "method/merging/weighting=min_max")


def test_one_node_a_client_agrees_with_one_node_for_all(merge: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
    together = merge("together", *SGD, *MEMORY)
    separate(monkeypatch)
    agree(together, merge("apart", *SGD, *MEMORY))


@pytest.mark.slow
@pytest.mark.parametrize("change", [(), (OFFLINE, *MEMORY), ("method/experts=trained", "method.experts.rounds=1")])
def test_flower_simulation_agrees_with_in_process(merge: Merge, change: tuple[str, ...]) -> None:
    own = (
        *SGD,
        *change,
        *(("method.experts.local.optimizer=sgd",) if len(change) == 2 and change[0] != OFFLINE else ()),
    )
    agree(merge("here", *own), merge("there", *own, "engine=flower"))


# Law 3.


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (MEMORY, 2),
        pytest.param((OFFLINE, *MEMORY), 2, marks=pytest.mark.slow),
        pytest.param(("method/algorithm@method.merging.learning.algorithm=ppo",), 2, marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_straight_through(
    merge: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, ...], after: int
) -> None:
    own = (FULL, "data.users=6", "method.merging.local.optimizer_state=persist", *change)
    straight = merge("straight", *own)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(after, patch, "control")
        merge("killed", *own)
    resumed = resume(tmp_path / "killed")
    assert residuals(final_state(straight, "control"), final_state(resumed, "control")) == (0.0, 0.0)
    assert resumed.summary.metrics == straight.summary.metrics
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "straight")


# Law 6.


@pytest.mark.parametrize(
    "name", ["central", *(pytest.param(each, marks=pytest.mark.slow) for each in GUARANTEES if each != "central")]
)
def test_every_guarantee_runs_within_its_budget(merge: Merge, name: str) -> None:
    found = merge("run", *GUARANTEES[name], *SHORT, "method/merging/weighting=min_max")
    assert found.summary.status == "completed"
    told = found.summary.privacy
    assert told is not None
    assert told["epsilon"] is None if name == "secure_sum" else 0 < told["epsilon"] <= 8.0
    state = final_state(found, "control")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values() if tensor.is_floating_point())
    assert float(state["preferences/weight"].sum()) == pytest.approx(1.0, abs=1e-5)


def test_a_secure_sum_ends_where_an_open_one_does(merge: Merge) -> None:
    plain, hidden = (
        merge(name, OFFLINE, FULL, *SHORT, *SGD, *more)
        for name, more in (("plain", ()), ("hidden", ("privacy=secure_sum", WITHHELD)))
    )
    assert residuals(final_state(plain, "control"), final_state(hidden, "control"))[0] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["central", "secure_sum", "distributed"])
def test_experts_and_control_model_share_a_budget(merge: Merge, name: str) -> None:
    trained = ("method/experts=trained", "method.experts.rounds=1", "method.experts.local.steps=2")
    found = merge("run", *trained, *GUARANTEES[name], *SHORT)
    told = found.summary.privacy
    assert told is not None
    if name == "secure_sum":
        assert told["epsilon"] is None
    else:
        assert set(told["epsilon_by_phase"]) == {"experts", "control"}
        assert max(told["epsilon_by_phase"].values()) <= told["epsilon"] <= 8.0


@pytest.mark.parametrize("unit", ["user", "example"])
def test_noise_of_the_clients_own_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: str
) -> None:
    assert main(["run", *overrides_of(folder), f"privacy=local_{unit}", f"output={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedalign: privacy.local.unit={unit}: ")
    assert line.endswith("choose another method, or privacy=central")
    assert list(tmp_path.iterdir()) == []


# Law 7.


def test_one_seed_is_one_run_whatever_the_global_generators_are(merge: Merge) -> None:
    change = ("method.merging.learning.coverage.concentration=0.5",)
    torch.manual_seed(1)
    random.seed(1)
    first = merge("first", *change)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    random.seed(2)
    again = merge("again", *change)
    torch.set_rng_state(before)
    other = merge("other", *change, "seed=1")
    assert residuals(final_state(first, "control"), final_state(again, "control")) == (0.0, 0.0)
    assert first.summary.metrics == again.summary.metrics
    assert residuals(final_state(first, "control"), final_state(other, "control"))[0] > 1e-3


def test_training_draws_nothing_from_the_default_generator(folder: Path) -> None:
    own = control_phase(folder / "model", controlled(online("ppo", share=0.5), transformer()))
    state = own.initial(Streams(3), {})
    before = torch.get_rng_state()
    contributions(own, state, client(rl=wishes("praise, moving")))
    assert torch.equal(torch.get_rng_state(), before)


# What is the same whatever else is chosen.


@pytest.mark.parametrize("mixing", [Linear(), LogLinear()], ids=["linear", "log_linear"])
def test_top_tokens_are_never_nan(folder: Path, mixing: Mixing) -> None:
    own = control_phase(
        folder / "model",
        controlled(online("rebel"), transformer(), mixing=mixing),
        AdapterExperts(
            {
                name: str(folder / side)
                for name, side in zip(("praise", "blame", "moving", "still"), SIDES, strict=False)
            }
        ),
        top_tokens=1,
        floor=1e-9,
    )
    state = own.initial(Streams(3), {})
    found = contributions(own, state, client(rl=wishes("praise, moving", "blame, still")))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors.values())


def test_the_method_is_configured_as_it_is_tested(folder: Path) -> None:
    found = parse(resolve(overrides_of(folder))).method
    assert type(found) is type(method())
    assert found.headline == "unseen/reward"
