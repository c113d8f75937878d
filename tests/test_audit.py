"""The audit, from a configuration to its verdict: it finds what is wrong behind the ledger's back, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedalign.audit import PLOT, RESULT, Audited, Request, audit_run
from fedalign.audited_run import _check_alone, _stages
from fedalign.cli import main
from fedalign.config import parse, resolve
from fedalign.contribution import Contribution
from fedalign.data.federated import ClientInfo, Role
from fedalign.errors import RunFailed, UserError
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.site import Site
from fedalign.privacy import distributed_noise, dp_sgd, unit_gradients
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.mechanism import Gaussian, Scale
from fedalign.report.run_directory import RunDirectory
from fedalign.template import Template, Vector
from tests.cases import mostly_slow
from tests.federation.toy import Halfway, ToyData
from tests.tiny import TINY, use_cache

# One phase of 4434 numbers, and noise that is the same in every session.
WORLD = (*TINY, "method.prior=none", "federation.rounds=2", "privacy/randomness=seeded")
CENTRAL = (*WORLD, "privacy=central")
# Noise for as many clients as there are, or hardly any audit could see through it.
DISTRIBUTED = (
    *TINY, "method.prior=none", "privacy/randomness=seeded", "privacy=distributed", "privacy.secure.neighbours=4",
    "privacy.secure.minimum=110", "privacy.epsilon=4",
)  # fmt: skip
LOCAL = (
    *WORLD, "privacy=local_user", "privacy.local.rate=1.0", "method.local.optimizer=sgd", "method.local.steps=3",
)  # fmt: skip
GIVEN_NOISE = ("privacy.noise_multiplier=1", "privacy.epsilon=null")


@pytest.fixture(autouse=True)
def _own_place(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path_factory.getbasetemp(), monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def audited(path: Path, *overrides: str, canaries: int = 300) -> Audited:
    return audit_run(overrides, Request(canaries, 0.95, "gdp", path / "audit", 0))


def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def release(self: Gaussian, total: Vector, scale: Scale, generator: Any, history: Vector) -> tuple[Vector, Vector]:
        return total, history

    monkeypatch.setattr(Gaussian, "release", release)


def without_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    def clip(self: ClientLevel, told: Contribution, template: Template, bound: float) -> tuple[Vector, float]:
        vector = template.flatten(Contribution(told.tensors))
        return vector, float(np.linalg.norm(vector))

    monkeypatch.setattr(ClientLevel, "clip", clip)


@pytest.mark.parametrize("epsilon", mostly_slow([1, 4, 8], [1]))
def test_a_kept_promise_is_not_refuted(tmp_path: Path, epsilon: int) -> None:
    result = audited(tmp_path, *CENTRAL, f"privacy.epsilon={epsilon}").result
    assert result.claimed == pytest.approx(epsilon, rel=0.01)
    assert result.verdict == "consistent"
    assert result.can_fail
    # A canary leans as far as it may, and no farther.
    assert result.included.mean == pytest.approx(1.0, abs=0.5)
    assert result.held_out.mean == pytest.approx(0.0, abs=0.5)
    # So many canaries see something of a large epsilon, and nothing of a small one.
    assert (result.main.epsilon > 2) == (epsilon == 8)


def test_missing_noise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_noise(monkeypatch)
    found = audited(tmp_path, *CENTRAL, "privacy.epsilon=8")
    assert found.result.verdict == "violated"
    assert found.result.main.epsilon > 8
    with pytest.raises(RunFailed, match="Violated"):
        found.check()


def test_a_missing_clip_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_clip(monkeypatch)
    result = audited(tmp_path, *CENTRAL, "privacy.epsilon=4").result
    assert result.verdict == "violated"
    assert result.included.mean == pytest.approx(10.0, abs=1)


@pytest.mark.slow
def test_noise_of_the_clients_is_audited_too(tmp_path: Path) -> None:
    result = audited(tmp_path, *DISTRIBUTED, canaries=120).result
    assert result.verdict == "consistent"
    assert result.included.mean - result.held_out.mean == pytest.approx(1.0, abs=0.5)


def test_clients_that_leave_out_their_share_of_the_noise_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(size: int, variance: float, generator: np.random.Generator) -> Any:
        return np.zeros(size, dtype=np.int64)

    monkeypatch.setattr(distributed_noise, "skellam", nothing)
    assert audited(tmp_path, *DISTRIBUTED, canaries=120).result.verdict == "violated"


@pytest.mark.parametrize("noise", [pytest.param(True, marks=pytest.mark.slow), False])
def test_noise_within_a_client_is_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: bool) -> None:
    if not noise:
        monkeypatch.setattr(dp_sgd, "add_gaussian", lambda values, std, generator: values)
    found = audited(tmp_path, *LOCAL, "privacy.epsilon=4", canaries=200)
    assert found.result.verdict == ("consistent" if noise else "violated")
    assert "further units of one client" in " ".join(found.limits)


@pytest.mark.slow
def test_a_missing_clip_within_a_client_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def added(gradients: Any, bound: float) -> Any:
        return [gradient.double().sum(0) for gradient in gradients]

    monkeypatch.setattr(unit_gradients, "clip_units", added)
    assert audited(tmp_path, *LOCAL, "privacy.epsilon=4").result.verdict == "violated"


@pytest.mark.slow
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize(
    "overrides",
    [
        ("privacy=central", *GIVEN_NOISE, "federation/sampler=poisson"),
        ("privacy=central", "privacy.noise_multiplier=4", "privacy.epsilon=null", "federation/sampler=fraction"),
        ("privacy=central_adaptive", *GIVEN_NOISE, "federation/sampler=poisson", "federation.rounds=6"),
        ("privacy=central_ftrl", "privacy.epsilon=4", "federation/sampler=cyclic", "federation.rounds=8"),
        ("privacy=central", "privacy.epsilon=4", "method.prior=federated"),
        (
            "privacy=central",
            "privacy/secure=secagg",
            "privacy/metrics=withheld",
            "privacy.secure.neighbours=4",
            "privacy.epsilon=4",
        ),
    ],
)
def test_every_form_of_the_guarantee(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], noise: bool
) -> None:
    if not noise:
        without_noise(monkeypatch)
        monkeypatch.setattr("fedalign.privacy.mechanism.Banded.release", Gaussian.release)
    found = audited(tmp_path, *WORLD, *overrides)
    assert found.result.verdict == ("consistent" if noise else "violated")
    if not noise:
        replaced = "federation/sampler=fraction" in overrides
        assert found.result.held_out.mean == pytest.approx(-1.0 if replaced else 0.0, abs=0.2)


@pytest.mark.usefixtures("real_plots")
def test_the_command_audits_a_runs_configuration_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.write_config(resolve([*CENTRAL, "privacy.epsilon=4", "privacy/metrics=open"]))
    with monkeypatch.context() as patch:
        without_noise(patch)
        assert main(["audit", str(run.path), "--canaries", "300", "--seed", "7"]) == 1
    seen = capsys.readouterr()
    assert "Violated" in seen.err
    assert "Gaussian trade-off" in seen.out
    content = json.loads((run.path / "audit" / RESULT).read_text())
    assert content["verdict"] == "violated"
    assert content["epsilon_lower_bound"] > content["epsilon_claimed"]
    assert content["epsilon_claimed"] == content["privacy"]["epsilon"]
    assert content["settings"]["seed"] == 7
    assert content["privacy"]["metrics"] == "withheld"
    assert (run.path / "audit" / PLOT).read_bytes().startswith(b"\x89PNG")
    assert main(["audit", str(run.path)]) == 2
    assert "holds an audit already" in capsys.readouterr().err


def test_the_command_audits_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*CENTRAL, "privacy.epsilon=2", "--canaries=100", "--bound=one_run", f"--output={tmp_path / 'here'}"]
    assert main(["audit", *arguments]) == 0
    assert "Consistent" in capsys.readouterr().out
    content = json.loads((tmp_path / "here" / RESULT).read_text())
    assert content["bounds"][0]["name"] == "one run"
    assert content["canaries"]["included"] + content["canaries"]["held_out"] == 100


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["privacy=none"], "claims no epsilon"),
        (["privacy=secure_sum"], "claims no epsilon"),
        (["privacy=central", "privacy.noise_multiplier=0"], "noise_multiplier=0 claims nothing"),
    ],
)
def test_what_claims_nothing_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        audited(tmp_path, *overrides)
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize(
    ("setting", "value"), [("canaries", 3), ("confidence", 0.4), ("confidence", 1.0), ("bound", "x"), ("seed", -1)]
)
def test_a_setting_out_of_range_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--{setting}="):
        Request(**{setting: value})


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        audit_run([str(tmp_path)], Request())


@pytest.mark.parametrize(
    ("overrides", "disjoint", "expected"),
    [
        (("privacy=central",), False, ((), ("rl",), ("rl", "sft"))),
        (("privacy=local_user", "privacy.delta=1e-3"), True, (("rl",), ("sft",))),
        (("privacy=local_user", "privacy.delta=1e-3"), False, ((),)),
    ],
)
def test_canaries_are_in_the_stages_that_a_unit_may_be_in(
    overrides: tuple[str, ...], disjoint: bool, expected: tuple[tuple[str, ...], ...]
) -> None:
    """In more of them than any real unit, a canary would refute what is promised to nobody."""

    class Staged(ToyData):
        @property
        def clients(self) -> list[ClientInfo]:
            held = {"ada": ("rl",), "bob": ("rl",), "cid": ("rl", "sft"), "uma": ("reward",)}
            return [replace(client, stages=held.get(client.name, ())) for client in super().clients]

    phases = [Halfway(rounds) for rounds in (1, 2, 0, 3)]
    for phase, stage in zip(phases, ("sft", "rl", "reward", None), strict=True):
        phase.stage = stage
    config = replace(parse(resolve([*TINY, *overrides])), partition=SimpleNamespace(disjoint=disjoint))  # type: ignore[arg-type]
    assert _stages(config, Site(5, 1, phases, Staged())) == expected


def test_a_client_that_cannot_train_every_phase_alone_is_refused_with_what_to_choose() -> None:
    phases = [Halfway(), Halfway(), Halfway(rounds=0)]
    for phase, stage in zip(phases, ("sft", "rl", "reward"), strict=True):
        phase.stage = stage
    _check_alone(phases, ClientDirectory.of([ClientInfo("silo-1", Role.TRAIN, ("sft", "rl"))]))
    _check_alone(phases, ClientDirectory.of([ClientInfo("silo-1", Role.TRAIN)]))
    with pytest.raises(UserError, match=r"all stages \(it lacks rl\); audit .* partition=silos"):
        _check_alone(phases, ClientDirectory.of([ClientInfo("ann", Role.TRAIN, ("sft",))]))
