"""Guarantees whose parts do not go together are refused in one line that says what to change."""

from __future__ import annotations

from typing import Any

import pytest

from fedalign.errors import UserError
from fedalign.privacy.adaptive_clipping import AdaptiveClip
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.local import DPSGD
from fedalign.privacy.mechanism import Banded
from fedalign.privacy.metric_release import OpenMetrics, SummedMetrics, WithheldMetrics
from fedalign.privacy.rounding import Rounding
from tests.federation.guarded import CLIP, PLAIN_SUM, SECAGG, protection, secure_sum

SKELLAM = Skellam(Rounding(0.01, 0.6))
ADAPTIVE = ClientLevel(1.0, {}, {}, 1.0, AdaptiveClip(0.5, 0.2, 0.05))
LOCAL = DPSGD("example", 1.0, 0.25, "hooks")
ON_CLIENTS: dict[str, Any] = {"clip": None, "mechanism": None, "local": LOCAL}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "clip without mechanism": ({"mechanism": None}, "privacy.clip and privacy.mechanism belong together"),
    "mechanism without clip": ({"clip": None}, "privacy.clip and privacy.mechanism belong together"),
    "two units": ({"local": LOCAL}, "privacy.local and privacy.mechanism protect different units"),
    "no budget and no noise": (
        {"noise_multiplier": None},
        "privacy.epsilon and privacy.noise_multiplier are both null",
    ),
    "nothing at all": (PLAIN_SUM, "promises nothing; set privacy=none"),
    "epsilon of a secure sum": (
        {**PLAIN_SUM, "secure": SECAGG, "metrics": WithheldMetrics(), "epsilon": 1.0},
        "privacy.epsilon needs a mechanism",
    ),
    "noise of a secure sum": (
        {**PLAIN_SUM, "secure": SECAGG, "metrics": WithheldMetrics(), "noise_multiplier": 1.0},
        "privacy.epsilon needs a mechanism",
    ),
    "shares of noise in the open": ({"mechanism": SKELLAM, "metrics": WithheldMetrics()}, "add privacy/secure=secagg"),
    "adaptive with skellam": (
        {"mechanism": SKELLAM, "secure": SECAGG, "metrics": WithheldMetrics(), "clip": ADAPTIVE},
        "privacy.clip.adaptive is accounted for with privacy/mechanism=gaussian only",
    ),
    "adaptive with banded": (
        {"mechanism": Banded(4), "clip": ADAPTIVE},
        "privacy.clip.adaptive is accounted for with privacy/mechanism=gaussian only",
    ),
    "open metrics past a secure sum": ({"secure": SECAGG}, "privacy/metrics=open would send each client's metrics"),
    "exact metrics": ({"metrics": SummedMetrics((), 0.0)}, "privacy.metrics.noise_multiplier=0 releases exact sums"),
    "metrics told to whom local noise is against": (
        {**ON_CLIENTS, "metrics": SummedMetrics((), 9.0)},
        "privacy/metrics=summed would tell the server what privacy.local hides",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(name: str) -> None:
    changes, reason = REFUSED[name]
    with pytest.raises(UserError) as refusal:
        protection(**changes)
    message = str(refusal.value)
    assert reason in message
    assert "\n" not in message


ACCEPTED: dict[str, tuple[dict[str, Any], bool]] = {
    "central": ({}, True),
    "without noise": ({"noise_multiplier": 0.0}, True),
    "adaptive": ({"clip": ADAPTIVE}, True),
    "adaptive in a secure sum": ({"clip": ADAPTIVE, "secure": SECAGG, "metrics": WithheldMetrics()}, True),
    "banded": ({"mechanism": Banded(4)}, True),
    "distributed": ({"mechanism": SKELLAM, "secure": SECAGG, "metrics": WithheldMetrics()}, True),
    "noisy metrics": ({"metrics": SummedMetrics((), 5.0)}, True),
    "on clients": (ON_CLIENTS, True),
    "on clients, in a secure sum": ({**ON_CLIENTS, "secure": SECAGG, "metrics": WithheldMetrics()}, True),
    "secure sum": ({**PLAIN_SUM, "secure": SECAGG, "metrics": WithheldMetrics()}, False),
    "secure sum with exact metrics": ({**PLAIN_SUM, "secure": SECAGG, "metrics": SummedMetrics((), 0.0)}, False),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_goes_together_is_accepted(name: str) -> None:
    changes, private = ACCEPTED[name]
    assert protection(**changes).private is private


def test_usual_values_are_those_of_the_tests() -> None:
    assert protection().clip == CLIP
    assert isinstance(protection().metrics, OpenMetrics)
    assert secure_sum().mechanism is None
