"""Laws 2, 3, 4, 6 and 8 under a guarantee, on real methods: layouts, resumption, limits, and every option."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.config import parse, resolve
from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.federation.observer import RoundReport
from fedalign.report.metrics_log import MetricsLog, read_metrics
from fedalign.report.summary import PRIVACY_KEYS
from fedalign.run import JOURNAL, resume
from fedalign.run_end import Result
from tests.cases import mostly_slow

from .conftest import Runner, felt, final_state, residuals
from .test_engines_agree import separate

SEEDED = "privacy/randomness=seeded"
CYCLIC = ("federation/sampler=cyclic", "federation.sampler.groups=4")
GUARANTEES: dict[str, tuple[str, ...]] = {
    "central": ("privacy=central", SEEDED),
    "central_adaptive": ("privacy=central_adaptive", "privacy.clip.adaptive.count_noise=0.5", SEEDED),
    "central_ftrl": ("privacy=central_ftrl", *CYCLIC, SEEDED),
    "secure_sum": ("privacy=secure_sum",),
    "distributed": ("privacy=distributed", SEEDED),
    "local_user": ("privacy=local_user", "method.prior=none", SEEDED),
}
SHORT = ("federation.rounds=2", "federation.evaluate_every=2")


class Killed(BaseException):
    """Nothing catches it, as nothing catches a power cut."""


def kill_after(number: int, monkeypatch: pytest.MonkeyPatch, phase: str = "gpo") -> None:
    told = MetricsLog.round_ended

    def round_ended(log: MetricsLog, report: RoundReport) -> None:
        told(log, report)
        if (report.phase, report.round) == (phase, number):
            raise Killed

    monkeypatch.setattr(MetricsLog, "round_ended", round_ended)


def guarantee(result: Result) -> dict[str, Any]:
    assert result.summary.privacy is not None
    return result.summary.privacy


# What a run says of itself.


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ("central_adaptive", "local_user") else []) for n in GUARANTEES],
)
def test_every_guarantee_runs_and_is_stated_in_full(run: Runner, name: str) -> None:
    result = run("run", *GUARANTEES[name], *SHORT)
    assert result.summary.status == "completed"
    written = json.loads((result.directory / "summary.json").read_text())["privacy"]
    assert written == guarantee(result)
    assert set(PRIVACY_KEYS) <= set(written)
    assert written["sentence"].endswith(".")
    lines = " ".join(written["not_covered"])
    assert ("metrics: they are exact" in lines) == (written["metrics"] == "open")
    if name == "secure_sum":
        assert written["epsilon"] is None
        return
    assert "whoever knows the run's seed" in lines
    assert 0 < written["epsilon"] <= 8.0
    spent = [m.value for m in read_metrics(result.directory / "metrics.jsonl") if m.name == "epsilon"]
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(written["epsilon"])


def test_without_a_guarantee_nothing_is_stated(run: Runner) -> None:
    result = run("run", *SHORT)
    assert result.summary.privacy is None
    assert not (result.directory / "checkpoints" / JOURNAL).exists()


@pytest.mark.slow
def test_two_runs_of_the_system_noise_differ_and_two_of_a_seed_do_not(run: Runner) -> None:
    def end(name: str, *more: str) -> State:
        return final_state(run(name, "privacy=central", *SHORT, "method.prior=none", *more))

    assert residuals(end("s1"), end("s2"))[0] > 1e-3
    assert residuals(end("f1", SEEDED), end("f2", SEEDED)) == (0.0, 0.0)


# Law 2.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["central", "distributed"])
def test_flower_s_simulation_agrees_with_in_process(run: Runner, name: str) -> None:
    """Every message is serialised there, keys, shares and masked vectors too."""
    here, there = run("here", *GUARANTEES[name], *SHORT), run("there", *GUARANTEES[name], *SHORT, "engine=flower")
    largest, mean = residuals(final_state(here), final_state(there))
    assert largest <= 1e-6
    assert mean <= 1e-6
    assert guarantee(there)["epsilon"] == guarantee(here)["epsilon"]


@pytest.mark.parametrize(
    "name",
    [
        "central",
        "distributed",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("secure_sum", "central_adaptive", "central_ftrl", "local_user")
        ),
    ],
)
def test_one_node_a_client_agrees_with_one_node_for_all(
    run: Runner, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    together = run("together", *GUARANTEES[name], *SHORT)
    separate(monkeypatch)
    apart = run("apart", *GUARANTEES[name], *SHORT)
    largest, mean = residuals(final_state(together), final_state(apart))
    assert largest <= 1e-6
    assert mean <= 1e-6
    assert guarantee(together) == guarantee(apart)


# Law 3.


@pytest.mark.parametrize(
    "name",
    [
        "central",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("central_ftrl", "secure_sum", "distributed", "central_adaptive", "local_user")
        ),
    ],
)
def test_a_resumed_run_ends_where_the_undisturbed_one_does_and_has_spent_as_much(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    straight = run("straight", *GUARANTEES[name])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(3, patch)
        run("killed", *GUARANTEES[name])
    resumed = resume(tmp_path / "killed")
    assert residuals(final_state(straight), final_state(resumed))[0] <= (1e-12 if name != "secure_sum" else 1e-6)
    assert guarantee(resumed) == guarantee(straight)
    assert resumed.summary.metrics == pytest.approx(straight.summary.metrics)


@pytest.mark.slow
def test_rounds_that_are_run_again_with_fresh_noise_stay_charged(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = ("privacy=central", "privacy.epsilon=null", "privacy.noise_multiplier=3")
    straight = guarantee(run("straight", *noisy))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(3, patch)
        run("killed", *noisy)
    journal = json.loads((tmp_path / "killed" / "checkpoints" / JOURNAL).read_text())
    assert sum(each["releases"] for each in journal["cohorts"]) == 4
    resumed = guarantee(resume(tmp_path / "killed"))
    assert resumed["releases"] == straight["releases"] + 1
    assert resumed["epsilon"] > straight["epsilon"]


@pytest.mark.slow
def test_a_budget_holds_over_a_resumed_run(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was spent twice is missing at the end: the run stops earlier, and is evaluated there."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(3, patch)
        run("killed", "privacy=central")
    resumed = resume(tmp_path / "killed")
    told = guarantee(resumed)
    assert told["epsilon"] <= 8.0
    assert told["stopped_after"] == {"gpo": 4}
    assert resumed.summary.status == "completed"


# Law 4.


def test_no_noise_and_no_bound_is_the_plain_mean_over_clients(run: Runner) -> None:
    plain = run("plain", *SHORT, "method.prior=none")
    limit = ("privacy=central", "privacy.epsilon=null", "privacy.noise_multiplier=0", "privacy.clip.bound=1e9")
    result = run("limit", *SHORT, *limit, "method.prior=none")
    assert residuals(final_state(plain), final_state(result))[0] <= 1e-6
    told = guarantee(result)
    assert told["epsilon"] is None
    assert told["sentence"] == "Without noise nothing is promised: epsilon is infinite."


def test_a_secure_sum_changes_nothing_but_the_last_digits(run: Runner) -> None:
    """Without the question prior, whose contributors are not named in a secure sum: none takes its own part out."""
    bare = (*SHORT, "method.prior=none")
    plain, secure = run("plain", *bare), run("secure", *bare, "privacy=secure_sum")
    largest, _ = residuals(felt(final_state(plain)), felt(final_state(secure)))
    assert largest <= 1e-6
    for name in ("unseen/alignment_score", "train/alignment_score"):
        assert secure.summary.metrics[name] == pytest.approx(plain.summary.metrics[name], abs=1e-4)


@pytest.mark.slow
def test_a_secure_sum_with_noise_of_the_server_is_the_central_guarantee(run: Runner) -> None:
    plain = run("plain", *SHORT, "privacy=central", SEEDED, "privacy/metrics=withheld")
    secure = run("secure", *SHORT, "privacy=central", SEEDED, "privacy/metrics=withheld", "privacy/secure=secagg")
    # The sum differs in its last digits, and may then fall on another point of the noise's grid.
    assert residuals(final_state(plain), final_state(secure))[0] <= 1e-4
    assert guarantee(plain)["epsilon"] == guarantee(secure)["epsilon"]


# Budgets.


def test_a_run_stops_before_the_round_that_would_exceed_its_budget(run: Runner) -> None:
    result = run("run", "privacy=central", "privacy.noise_multiplier=1", "privacy.epsilon=4", "federation.rounds=40")
    told = guarantee(result)
    done = told["stopped_after"]["gpo"]
    assert result.summary.status == "completed"
    assert 0 < done < 40
    assert told["epsilon"] <= 4.0
    tested = {m.round for m in read_metrics(result.directory / "metrics.jsonl") if m.scope == "test"}
    assert tested == {done}


@pytest.mark.slow
def test_noise_chosen_for_a_budget_spends_nearly_all_of_it(run: Runner) -> None:
    for epsilon in (1.0, 8.0):
        told = guarantee(run(f"e{epsilon}", "privacy=central", f"privacy.epsilon={epsilon}", *SHORT))
        assert 0.97 * epsilon <= told["epsilon"] <= epsilon
        assert told["stopped_after"] is None


# Law 6 for methods that know nothing of it.


@pytest.mark.parametrize("name", mostly_slow(["central", "secure_sum", "distributed"], ["central"]))
def test_the_variational_method_runs_under_it(run_pairs: Runner, name: str) -> None:
    result = run_pairs("run", "method=fedvpa_sums", *GUARANTEES[name], *SHORT, "federation/sampler=full")
    assert result.summary.status == "completed"
    assert guarantee(result)["releases"] == (0 if name == "secure_sum" else 2)
    state = final_state(result, "selector")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values() if tensor.is_floating_point())


@pytest.mark.slow
def test_so_do_weights_that_stay_on_the_client(run_pairs: Runner) -> None:
    for name in ("central", "secure_sum"):
        gumbel = ("method.divergence.weights=gumbel", "federation/sampler=full")
        result = run_pairs(name, "method=fedvpa_sums", *gumbel, *GUARANTEES[name], *SHORT)
        assert result.summary.status == "completed"


def test_a_diagnostic_that_collects_latents_one_by_one_is_refused(run_pairs: Runner, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in phase 'latents' the server must see each client's reply"):
        run_pairs("run", "method=fedvpa_sums", "method.collect_latents=true", *GUARANTEES["secure_sum"])
    assert not (tmp_path / "run").exists()


def test_methods_say_no_word_of_privacy() -> None:
    """What they may say: which sums they add up, and which units their local training can single out."""
    from fedalign import methods

    said = {}
    folder = Path(methods.__path__[0])
    for path in sorted(folder.glob("*.py")):
        text = path.read_text().lower()
        if any(word in text for word in ("custod", "secagg", "secure_sum", "epsilon_", "ledger", "shield")):
            said[path.name] = True
    assert said == {}


# Law 8.

METERED = ("privacy/metrics=summed", "privacy.metrics.noise_multiplier=5")
CHANGES: dict[str, tuple[str, Sequence[str]]] = {
    "bound": ("central", ["privacy.clip.bound=0.01"]),
    "phases": ("central", ["+privacy.clip.phases.gpo=0.01"]),
    "scales": ("central", ["+privacy.clip.scales.delta=3.0"]),
    "weight_bound": ("central", ["privacy.clip.weight_bound=7"]),
    "epsilon": ("central", ["privacy.epsilon=2"]),
    "delta": ("central", ["privacy.delta=0.0001"]),
    "noise_multiplier": ("central", ["privacy.noise_multiplier=0.9", "privacy.epsilon=null"]),
    "randomness": ("central", ["privacy/randomness=system"]),
    "mechanism": ("central_ftrl", ["privacy/mechanism=gaussian"]),
    "quantile": ("central_adaptive", ["privacy.clip.adaptive.quantile=0.9"]),
    "learning_rate": ("central_adaptive", ["privacy.clip.adaptive.learning_rate=1.0"]),
    "count_noise": ("central_adaptive", ["privacy.clip.adaptive.count_noise=0.9"]),
    "bands": ("central_ftrl", ["privacy.mechanism.bands=2"]),
    "inflation": ("distributed", ["privacy.mechanism.rounding.inflation=0.2"]),
    "failure": ("distributed", ["privacy.mechanism.rounding.failure=0.1"]),
    "minimum": ("distributed", ["privacy.secure.minimum=4"]),
    "bits": ("secure_sum", ["privacy.secure.bits=32", "privacy.secure.fraction_bits=8"]),
    "fraction_bits": ("secure_sum", ["privacy.secure.fraction_bits=6"]),
}
REFERENCES: dict[str, State] = {}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_an_option_of_a_guarantee_changes_what_is_learnt(run: Runner, name: str) -> None:
    group, change = CHANGES[name]
    rounds = ("federation.rounds=3", "federation.evaluate_every=9")
    if group not in REFERENCES:
        REFERENCES[group] = final_state(run("reference", *GUARANTEES[group], *rounds))
    changed = final_state(run("changed", *GUARANTEES[group], *rounds, *change))
    assert differ(changed, REFERENCES[group])


def differ(one: State, other: State) -> bool:
    """Tell whether two states differ; the question prior holds fewer questions where noise hides more of them."""
    alike = one.keys() == other.keys() and all(one[name].shape == other[name].shape for name in one)
    return not alike or residuals(one, other)[0] > 1e-7


@pytest.mark.slow
def test_a_single_band_is_independent_noise(run: Runner) -> None:
    central = run("central", *GUARANTEES["central"], *SHORT)
    banded = run("banded", *GUARANTEES["central"], *SHORT, "privacy/mechanism=banded", "privacy.mechanism.bands=1")
    assert residuals(final_state(central), final_state(banded))[0] <= 1e-12


@pytest.mark.parametrize(
    "change",
    [
        "privacy.local.clip=0.1",
        "privacy.local.rate=0.9",
        "+privacy.local.clips.gpo=0.1",
        "+privacy.local.rates.gpo=0.9",
    ],
)
@pytest.mark.slow
def test_an_option_of_local_noise_changes_what_is_learnt(run: Runner, change: str) -> None:
    # Adam takes steps of the same length whatever the gradients are clipped to.
    local = (*GUARANTEES["local_user"], *SHORT, "method.local.optimizer=sgd")
    plain = final_state(run("plain", *local))
    assert differ(plain, final_state(run("changed", *local, change)))


def test_the_metrics_that_are_named_are_those_that_are_released(run: Runner) -> None:
    usual = run("usual", "privacy=secure_sum", *SHORT)
    named = run("named", "privacy=secure_sum", *SHORT, "privacy.metrics.names=[unseen/alignment_score]")
    assert guarantee(usual)["released_metrics"] == ["unseen/alignment_score", "train/alignment_score"]
    assert guarantee(named)["released_metrics"] == ["unseen/alignment_score"]
    scored = {name for name in named.summary.metrics if name.endswith("alignment_score")}
    assert scored == {"initial/alignment_score", "unseen/alignment_score"}
    assert named.summary.groups == {}


@pytest.mark.slow
def test_metrics_with_noise_are_noisy_charged_and_never_by_group(run: Runner) -> None:
    many = ("data.groups=12", *SHORT, "privacy=central", SEEDED)
    opened = run("open", *many)
    summed = run("summed", *many, *METERED, "privacy.metrics.noise_multiplier=0.5", "privacy.epsilon=60")
    told = guarantee(summed)
    assert told["metrics"] == "summed"
    assert any(phase.startswith("metrics/") for phase in told["epsilon_by_phase"])
    assert told["epsilon"] <= 60
    assert summed.summary.groups == {}
    assert opened.summary.groups
    assert all(math.isfinite(value) for value in summed.summary.metrics.values())


def test_withheld_metrics_are_nowhere(run: Runner) -> None:
    result = run("run", "privacy=central", "privacy/metrics=withheld", *SHORT)
    assert result.summary.metrics == {}
    scopes = {m.scope for m in read_metrics(result.directory / "metrics.jsonl")}
    assert scopes == {"server"}


@pytest.mark.slow
def test_a_best_checkpoint_is_chosen_by_accounted_metrics_only(run: Runner) -> None:
    assert not (run("open", "privacy=central", *SHORT).directory / "checkpoints" / "best").exists()
    assert (run("none", *SHORT).directory / "checkpoints" / "best").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["privacy.secure.neighbours=2", "privacy.secure.threshold=0.9"])
def test_options_of_masks_change_no_sum(run: Runner, change: str) -> None:
    """They decide whose silence a round survives: tests/federation/test_secure_grid.py."""
    plain, changed = run("plain", "privacy=secure_sum", *SHORT), run("changed", "privacy=secure_sum", *SHORT, change)
    assert residuals(final_state(plain), final_state(changed)) == (0.0, 0.0)


def test_every_option_of_every_guarantee_is_tried() -> None:
    """A new one must be put into a test above."""
    tried = {
        *CHANGES, "names", "neighbours", "threshold", "unit", "clip", "rate", "clips", "rates", "grad_sample",
        "adaptive", "rounding", "local", "secure", "metrics", "_target_",
    }  # fmt: skip
    found = set()

    def walk(node: Any) -> None:
        for key, value in node.items():
            found.add(key)
            if isinstance(value, dict) and key not in ("phases", "scales"):
                walk(value)

    for name, overrides in GUARANTEES.items():
        walk(dict(resolve(list(overrides)))["privacy"])
        assert parse(resolve(list(overrides))).privacy is not None, name
    assert found <= tried
