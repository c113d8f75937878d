"""Keeps a run's guarantee: bounds and noise for every release, in the order of charging first and releasing then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.serverapp import Grid

from fedalign.contribution import WEIGHT, Contribution, State
from fedalign.federation.account import Account, finite
from fedalign.federation.custody import Custody, check_finite
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.messages import Terms
from fedalign.federation.metric_plan import count_floor, metric_bound, tells
from fedalign.federation.secure_grid import SUM, SecureSumGrid
from fedalign.federation.shield import NORM_BIT, metric_scalars
from fedalign.federation.vectors import WordCode, word_code
from fedalign.methods.base import Phase
from fedalign.metrics.record import METRIC, decode
from fedalign.privacy.adaptive_clipping import update_noise_multiplier
from fedalign.privacy.mechanism import Scale
from fedalign.privacy.metric_release import OpenMetrics, SummedMetrics, WithheldMetrics
from fedalign.privacy.noise import add_gaussian
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams
from fedalign.template import Template, Vector

SLACK = 1e-5
"""What float32 may add to a norm on its way."""

OpenAccount = Callable[[ClientDirectory], Account | None]


class Custodian(Custody):
    """Guards a run under a :class:`Protection`.

    Parameters
    ----------
    privacy : Protection
    metrics : sequence of str
        Metrics that are released where they are summed.
    open_account : callable
        Returns the account of a run with these clients; None where no differential privacy is promised.
    seed : int
    public : sequence of str
        What the guarantee takes as public, of the data that the run is about.
    """

    def __init__(
        self,
        privacy: Protection,
        metrics: Sequence[str],
        open_account: OpenAccount,
        seed: int,
        public: Sequence[str] = (),
    ) -> None:
        self.privacy, self.metrics, self.seed, self.public = privacy, tuple(metrics), seed, tuple(public)
        self._open_account = open_account
        self.account: Account | None = None
        self._bounds: dict[str, float] = {}
        self._history: dict[str, Vector] = {}

    def begin(self, directory: ClientDirectory) -> None:
        """Open the account, which chooses the noise."""
        self.account = self._open_account(directory)

    def layer(self, grid: Grid) -> Grid:
        """Return the grid, under a secure sum where there is to be one."""
        return grid if self._code is None else SecureSumGrid(grid, self._code, self.seed)

    def cohort_generator(self, streams: Streams) -> np.random.Generator:
        """Return a secret generator where the secrecy of the cohort is counted on, else the run's stream."""
        secret = self.account is not None and self.account.amplified(streams.phase)
        if not secret:
            return streams.numpy("cohort")
        return self.privacy.randomness.generator(streams, "cohort")

    def affords(self, phase: Phase[Any], state: State, number: int, cohort: Sequence[str]) -> bool:
        """Tell whether the round keeps within the budget."""
        return self.account is None or self.account.affords(phase.name, cohort)

    def announce(self, phase: Phase[Any], cohort: Sequence[str]) -> None:
        """Charge the round, where what the clients send is the release."""
        if self.account is not None and self._clients_release:
            self.account.charge(phase.name, cohort)

    def training_terms(self, phase: Phase[Any], state: State, cohort: Sequence[str]) -> Terms:
        """Return the bound, and what clients must know of the noise and of the sum."""
        noise = self.account.noise_multipliers[phase.name] if self.account is not None else 0.0
        size = self._template(phase, state).size + len(self._extras) if self._code is not None else 0
        # How many were drawn is told only where a secure sum needs it: a random number of clients is a secret too.
        asked = len(cohort) if self._code is not None else 0
        return Terms(self._bound(phase.name), noise, asked, size)

    def inspect(self, phase: Phase[Any], state: State, terms: Terms, clients: int, contribution: Contribution) -> None:
        """Refuse a sum that no ``clients`` clipped contributions can have; what is under masks cannot be seen."""
        if self._code is not None:
            return
        template = self._template(phase, state)
        template.check(contribution)
        norm = contribution.norm()
        if terms.bound and norm > clients * terms.bound * (1 + SLACK):
            raise ValueError(f"a sum of norm {norm:g} over {clients} clients, each bounded by {terms.bound:g}")
        equal = terms.bound or self.privacy.local is not None
        if equal and contribution.scalars.get(WEIGHT, 0.0) > clients:
            raise ValueError(f"a weight of {contribution.scalars[WEIGHT]:g} over {clients} clients")
        bits = contribution.scalars.get(NORM_BIT, 0.0)
        if abs(bits) > clients / 2:
            raise ValueError(f"norm bits of {bits:g} over {clients} clients, each 1/2 or -1/2")

    @property
    def releases_always(self) -> bool:
        """Whether noise must hide that nobody was drawn."""
        return self.privacy.mechanism is not None

    def release(
        self, phase: Phase[Any], state: State, number: int, cohort: Sequence[str], total: Contribution
    ) -> Contribution:
        """Charge the round, unless that was done, add the noise that is still missing, and fix the denominator."""
        template = self._template(phase, state)
        vector, extras = self._parts(total, template)
        metrics = {name: value for name, value in total.scalars.items() if name.startswith(METRIC)}
        if self.account is not None and not self._clients_release:
            self.account.charge(phase.name, cohort)
        if self.privacy.mechanism is None:
            return Contribution(template.unflatten(vector), {WEIGHT: extras[WEIGHT], **metrics})
        streams = Streams(self.seed, phase.name, number)
        noisy = self._noisy(phase.name, vector, extras, streams)
        assert self.privacy.clip is not None
        tensors = template.unflatten(noisy / template.scales(self.privacy.clip.scales))
        return Contribution(tensors, {WEIGHT: self._expected(phase.name), **metrics})

    def evaluation_terms(self, phase: Phase[Any], clients: Sequence[str]) -> Terms | None:
        """Return the public numbers of an evaluation; None where metrics are withheld, or not affordable."""
        if isinstance(self.privacy.metrics, WithheldMetrics):
            return None
        if self.metrics and self.privacy.private and not tells(phase, self.metrics):
            return None
        if self.account is not None and not self.account.affords_metrics():
            return None
        size = 2 * len(self.metrics) if self._code is not None else 0
        return Terms(self._metric_bound, self._metric_noise, len(clients), size)

    def announce_evaluation(self, phase: Phase[Any]) -> None:
        """Charge the evaluation, where what the clients send is the release."""
        if self.account is not None and self._clients_release:
            self.account.charge_metrics(phase.name)

    def inspect_metrics(self, clients: int, contribution: Contribution) -> None:
        """Refuse what is not finite, and sums of bounded values that ``clients`` cannot have."""
        check_finite(contribution)
        metrics = decode(contribution.scalars)
        if isinstance(self.privacy.metrics, OpenMetrics) or self._code is not None or not self.privacy.private:
            return
        for item in metrics:
            if not (0 <= item.total <= clients and 0 <= item.n <= clients):
                raise ValueError(f"{item.name}: {item.total:g} of {item.n:g} over {clients} clients, each at most 1")

    def release_metrics(self, phase: Phase[Any], number: int, total: Contribution) -> Contribution:
        """Charge an evaluation, unless that was done, and add noise to its sums; leave out what too few have."""
        if isinstance(self.privacy.metrics, OpenMetrics):
            return total
        if self.account is not None and not self._clients_release:
            self.account.charge_metrics(phase.name)
        vector = self._metric_vector(total)
        if self.privacy.mechanism is None or not self.privacy.mechanism.distributed:
            streams = Streams(self.seed, phase.name, number)
            generator = self.privacy.randomness.generator(streams, "metrics")
            vector = add_gaussian(vector, self._metric_noise * self._metric_bound, generator)
        known = np.repeat(vector[1::2] >= count_floor(self._metric_noise, len(self.metrics)), 2)
        scalars = metric_scalars(np.where(known, vector, 0.0), self.metrics)
        return Contribution(scalars={k: v for k, v in scalars.items() if scalars[k.rpartition("|")[0] + "|n"] > 0})

    @property
    def by_group(self) -> bool:
        """Whether metrics are open."""
        return isinstance(self.privacy.metrics, OpenMetrics)

    @property
    def lets_choose(self) -> bool:
        """Whether what is known of the metrics is accounted for, or nothing is."""
        return self.account is None or not isinstance(self.privacy.metrics, OpenMetrics)

    @property
    def epsilon(self) -> float | None:
        """What has been spent; None where nothing is counted, or nothing bounds it."""
        return None if self.account is None else finite(self.account.ledger.epsilon())

    def statement(self) -> dict[str, Any] | None:
        """Return the guarantee in words and numbers."""
        from fedalign.federation.statement import statement

        if self.privacy.private and self.account is None:
            return None
        return statement(self.privacy, self.account, self.metrics, self._bounds, self.public)

    def facts(self) -> dict[str, Any]:
        """Return the ledger and the bounds."""
        ledger = None if self.account is None else self.account.ledger.to_json()
        return {"ledger": ledger, "bounds": dict(self._bounds)}

    def tensors(self) -> State:
        """Return the noise that later rounds refer to; as secret as the noise itself."""
        return {name: torch.from_numpy(rows.copy()) for name, rows in self._history.items()}

    def restore(self, facts: Mapping[str, Any], tensors: State) -> None:
        """Go on from a checkpoint."""
        spent_since = False
        account, self.account = self.account, None
        # Until it is known what was spent, nothing is stated.
        if account is not None and facts.get("ledger") is not None:
            spent_since = account.restore(facts["ledger"])
        self.account = account
        self._bounds = {name: float(value) for name, value in facts.get("bounds", {}).items()}
        # Later rounds have already taken back part of this noise. A second series that does so too would leave less of
        # it than is accounted for, so it begins anew.
        self._history = {} if spent_since else {name: rows.double().numpy() for name, rows in tensors.items()}

    @property
    def _clients_release(self) -> bool:
        """Whether the server already sees noisy numbers only."""
        mechanism = self.privacy.mechanism
        return mechanism is None or mechanism.distributed

    @property
    def _code(self) -> WordCode | None:
        return word_code(self.privacy)

    @property
    def _extras(self) -> tuple[str, ...]:
        return extra_names(self.privacy)

    @property
    def _metric_bound(self) -> float:
        """L2 norm of one client's values and counts, each at most 1."""
        return metric_bound(len(self.metrics))

    @property
    def _metric_noise(self) -> float:
        release = self.privacy.metrics
        return release.noise_multiplier if isinstance(release, SummedMetrics) else 0.0

    def _template(self, phase: Phase[Any], state: State) -> Template:
        template = phase.template(state)
        if template is None:
            raise ValueError(f"phase {phase.name} has no template; the run should have been refused")
        return template

    def _bound(self, phase: str) -> float:
        clip = self.privacy.clip
        return 0.0 if clip is None else self._bounds.get(phase, clip.bound_of(phase))

    def _expected(self, phase: str) -> float:
        assert self.account is not None
        return self.account.exposures[phase].sampling.expected

    def _parts(self, total: Contribution, template: Template) -> tuple[Vector, dict[str, float]]:
        """Return a total as a vector, and the numbers beside it."""
        if self._code is None or SUM not in total.tensors:
            return template.flatten(total), {name: total.scalars.get(name, 0.0) for name in self._all_extras()}
        numbers = total.tensors[SUM].double().numpy()
        extras = dict(zip(self._extras, numbers[template.size :].tolist(), strict=True))
        return numbers[: template.size], extras

    def _all_extras(self) -> tuple[str, ...]:
        return (WEIGHT, NORM_BIT)

    def _noisy(self, phase: str, vector: Vector, extras: Mapping[str, float], streams: Streams) -> Vector:
        """Return the vector with noise, all of it scaled to the bound that this round clipped with."""
        mechanism, account, clip = self.privacy.mechanism, self.account, self.privacy.clip
        assert mechanism is not None and account is not None and clip is not None
        bound, noise = self._bound(phase), account.noise_multipliers[phase]
        source = self.privacy.randomness
        if clip.adaptive is not None:
            expected = self._expected(phase)
            count_std = clip.adaptive.count_std(expected)
            noise = update_noise_multiplier(noise, count_std)
            bits = np.array([extras[NORM_BIT]])
            seen = add_gaussian(bits, count_std if noise else 0.0, source.generator(streams, "norm bits"))
            self._bounds[phase] = clip.adaptive.next_bound(bound, float(seen[0]), expected)
        history = self._history.get(phase, np.zeros((0, len(vector))))
        released, self._history[phase] = mechanism.release(
            vector, Scale(bound, noise), source.generator(streams, "sum"), history
        )
        return released

    def _metric_vector(self, total: Contribution) -> Vector:
        if self._code is not None and SUM in total.tensors:
            return total.tensors[SUM].double().numpy()
        sums = {item.name: item for item in decode(total.scalars)}
        pairs = [(sums[name].total, sums[name].n) if name in sums else (0.0, 0.0) for name in self.metrics]
        return np.array(pairs, dtype=np.float64).reshape(-1)


def extra_names(privacy: Protection) -> tuple[str, ...]:
    """Return the numbers that a secure sum adds up behind the vector."""
    if privacy.clip is None:
        return (WEIGHT,)
    return (NORM_BIT,) if privacy.clip.adaptive is not None else ()
