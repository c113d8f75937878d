"""A node's work on an order: each client's part bounded or encoded, failures named, and the sum of the rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fedalign.contribution import Contribution
from fedalign.federation.desk import Desk, EvaluationDesk, TrainingDesk, add_up, answer
from fedalign.federation.messages import EVALUATE, INSTRUCTION, STATE, TRAIN, Instruction, NodeReport, Terms
from fedalign.federation.records import decode_contribution, encode_tensors
from fedalign.methods.base import Needs
from fedalign.metrics.record import decode
from fedalign.privacy.adaptive_clipping import AdaptiveClip
from fedalign.privacy.base import NoPrivacy, Privacy
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.metric_release import SummedMetrics, WithheldMetrics
from fedalign.privacy.noise import SystemNoise
from fedalign.privacy.protection import Protection
from fedalign.privacy.rounding import Rounding

from .guarded import CLIENTS, SECAGG, Guarded, Pull, protection, secure_sum, vector_of

ADAPTIVE = ClientLevel(1.0, {}, {}, 1.0, AdaptiveClip(0.5, 0.2, 0.5))
NOISY: dict[str, Any] = {"mechanism": Skellam(Rounding(0.01, 0.6)), "secure": SECAGG, "metrics": WithheldMetrics()}
TERMS = Terms(1.0, 4.0, 6, 8)


def desk(
    tmp_path: Path,
    privacy: Privacy,
    terms: Terms = TERMS,
    kind: type = TrainingDesk,
    phase: Pull | None = None,
    **more: Any,
) -> Desk:
    world = Guarded(tmp_path, privacy, [phase or Pull()], metrics=("train/closeness",))  # type: ignore[arg-type]
    grid = world.grid()
    order = Instruction("{}", 0, more.get("round", 1), CLIENTS, terms)
    state = encode_tensors({"w": torch.zeros(8, dtype=torch.float64)})
    content = RecordDict({STATE: state, INSTRUCTION: order.to_record()})
    message = grid.create_message(content, TRAIN if kind is TrainingDesk else EVALUATE, 1, "1")
    site = world.site("{}", {})
    if kind is EvaluationDesk:
        return EvaluationDesk(site, order, message)
    return TrainingDesk(site, order, message, grid.contexts[1])


def contribution(at: Any, client: str = "a") -> Contribution:
    """Return what a client adds, as it may travel."""
    return at.finish(client, at.work(client))


def test_without_a_guarantee_a_contribution_leaves_as_it_is(tmp_path: Path) -> None:
    told = contribution(desk(tmp_path, NoPrivacy()))
    torch.testing.assert_close(told.tensors["delta/w"], 2 * vector_of("a", 8))
    assert told.scalars["weight"] == 2.0


def test_under_a_guarantee_it_is_clipped_with_the_bound_of_the_order(tmp_path: Path) -> None:
    told = contribution(desk(tmp_path, protection(), Terms(bound=0.25)))
    torch.testing.assert_close(told.tensors["delta/w"].double(), vector_of("a", 8) / 12, atol=1e-7, rtol=0)
    assert told.norm() <= 0.25 * (1 + 1e-6)
    assert told.scalars["weight"] == 1.0


@pytest.mark.parametrize("privacy", [NoPrivacy(), protection()], ids=["none", "central"])
def test_a_client_that_is_not_finite_is_named_and_not_averaged(tmp_path: Path, privacy: Privacy) -> None:
    phase = Pull(tell=lambda client, told: told.scale(math.nan) if client == "b" else told)
    at = desk(tmp_path, privacy, phase=phase)
    content = add_up(at.told(CLIENTS))
    report, summed = NodeReport.of(content), decode_contribution(content)
    assert report.clients == tuple("acdef")
    assert [who for who, _ in report.failures] == ["b"]
    assert torch.isfinite(summed.tensors["delta/w"]).all()
    assert summed.scalars["weight"] == sum(contribution(at, c).scalars["weight"] for c in "acdef")


def test_a_phase_whose_sums_are_unknown_cannot_be_guarded(tmp_path: Path) -> None:
    phase = Pull()
    phase.needs = Needs.INDIVIDUAL
    with pytest.raises(ValueError, match="phase pull has no template"):
        contribution(desk(tmp_path, protection(), phase=phase))


def test_a_secure_vector_has_what_is_added_up_beside_it(tmp_path: Path) -> None:
    plain = desk(tmp_path, secure_sum()).vector("a", secure_sum())
    np.testing.assert_allclose(plain, [*(2 * vector_of("a", 8)).tolist(), 2.0])
    adaptive = protection(clip=ADAPTIVE, secure=SECAGG, metrics=WithheldMetrics())
    vector = desk(tmp_path, adaptive).vector("a", adaptive)
    np.testing.assert_allclose(vector, [*(vector_of("a", 8) / 3).tolist(), -0.5])
    central = protection(secure=SECAGG, metrics=WithheldMetrics())
    assert desk(tmp_path, central).vector("a", central).shape == (8,)


def test_words_without_noise_are_the_encoded_vector(tmp_path: Path) -> None:
    at = desk(tmp_path, secure_sum(), Terms(cohort=6, size=9))
    np.testing.assert_array_equal(at.words("a"), SECAGG.codec(6).encode(at.vector("a", secure_sum())))


def words(tmp_path: Path, privacy: Protection, client: str = "a", number: int = 1, kind: type = TrainingDesk) -> Any:
    # A contribution of nothing, so that the words are noise.
    phase = Pull(tell=lambda client, told: Contribution({}, {"weight": 1.0}))
    terms = Terms(1.0, 50.0, 6, 8 if kind is TrainingDesk else 2)
    return desk(tmp_path, privacy, terms, kind, phase, round=number).words(client)


def test_every_share_of_noise_is_its_own(tmp_path: Path) -> None:
    seeded = protection(**NOISY)
    once = words(tmp_path, seeded)
    assert (once == words(tmp_path, seeded)).all()
    for other in (words(tmp_path, seeded, "b"), words(tmp_path, seeded, "a", 2)):
        assert (once != other).any()
    system = protection(**NOISY, randomness=SystemNoise())
    assert (words(tmp_path, system) != words(tmp_path, system)).any()


def test_noise_of_training_and_of_the_evaluation_after_it_is_not_shared(tmp_path: Path) -> None:
    """Even where both follow from the seed."""
    noisy = protection(**{**NOISY, "metrics": SummedMetrics((), 50.0)})
    training, evaluation = (desk(tmp_path, noisy, kind=kind) for kind in (TrainingDesk, EvaluationDesk))
    assert training.streams("a") == evaluation.streams("a")
    assert training.exchange != evaluation.exchange
    assert len(words(tmp_path, noisy, kind=EvaluationDesk)) == 2


def test_metrics_leave_as_the_guarantee_lets_them(tmp_path: Path) -> None:
    def told(privacy: Privacy) -> Contribution:
        return contribution(desk(tmp_path, privacy, kind=EvaluationDesk))

    assert [item.group for item in decode(told(NoPrivacy()).scalars)] == ["a"]
    assert [item.group for item in decode(told(protection()).scalars)] == ["a"]
    (summed,) = decode(told(protection(metrics=SummedMetrics((), 5.0))).scalars)
    assert (summed.name, summed.group, summed.total, summed.n) == ("train/closeness", "all", pytest.approx(0.25), 1.0)
    secret = secure_sum(metrics=SummedMetrics((), 0.0))
    np.testing.assert_allclose(desk(tmp_path, secret, kind=EvaluationDesk).vector("a", secret), [0.25, 1.0])


def test_a_single_reply_keeps_its_precision_and_a_sum_has_more(tmp_path: Path) -> None:
    at = desk(tmp_path, protection())
    one, two = (decode_contribution(add_up(at.told(clients))) for clients in ("a", "ab"))
    assert one.tensors["delta/w"].dtype == torch.float32
    assert two.tensors["delta/w"].dtype == torch.float64
    nobody = add_up(at.told([]))
    assert NodeReport.of(nobody).clients == ()
    assert decode_contribution(nobody).tensors == {}


def test_an_order_without_letters_is_answered_with_a_sum(tmp_path: Path) -> None:
    world = Guarded(tmp_path, protection())
    at, context = desk(tmp_path, protection()), world.grid().contexts[1]
    message = world.grid().create_message(RecordDict({}), TRAIN, 1, "1")
    assert isinstance(message, Message)
    content = answer(message, context, at)
    assert NodeReport.of(content).clients == CLIENTS
