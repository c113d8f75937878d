"""The loop of a run: phases, rounds, evaluations and checkpoints, on whatever grid the engine gives."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import RunFailed
from fedalign.federation.attendance import Attendance
from fedalign.federation.bounded_grid import BoundedGrid
from fedalign.federation.checkpoint import BEST, NEWEST, Checkpoint
from fedalign.federation.custody import NoCustody
from fedalign.federation.directory import discover
from fedalign.federation.exchange import exchange
from fedalign.federation.job import CLOCK, Job, Outcome
from fedalign.federation.metric_values import means_by_group, means_of_all
from fedalign.federation.node_memories import NodeMemories
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.federation.records import decode_tensors, encode_tensors
from fedalign.federation.replies import Tally
from fedalign.federation.roster import Roster
from fedalign.federation.secure.coordinator import SecureSumAborted
from fedalign.federation.strategy import SumStrategy
from fedalign.methods.base import Needs
from fedalign.metrics.record import Metric, MetricSum, Scope
from fedalign.rng import Streams

_log = logging.getLogger(__name__)


class Conductor:
    """Runs a job's phases one after another on a grid."""

    def __init__(self, job: Job, grid: Grid) -> None:
        self.job, self.grid = job, BoundedGrid(grid, job.federation.max_reply_mb)
        self._layered = job.custody.layer(self.grid)
        self._memories = NodeMemories(self.grid, job.config, job.federation.round_timeout)
        self._stopped: dict[str, int] = {}
        self._attendance = Attendance()
        self._without_sum = 0
        self._lost = 0
        self.outcome = Outcome()
        self._best: float | None = None
        self._began = time.perf_counter()

    def run(self) -> Outcome:
        """Run every phase, or what is left of them, and return the outcome.

        Raises
        ------
        RunFailed
            If nodes do not come, or all clients of a round fail.
        UserError
            If the run is to be resumed and its checkpoint cannot be used, or nobody can train a phase.
        """
        job, settings = self.job, self.job.federation
        start = Checkpoint.load(job.checkpoints, NEWEST, job.method) if job.resume else None
        directory = discover(self.grid, job.config, job.nodes, settings.node_timeout)
        directory.check(job.phases, settings.sampler)
        directory.check_least(job.phases, settings.min_clients)
        directory.check_cohorts(job.phases, settings.sampler, settings.aggregation)
        job.custody.begin(directory)
        self._attendance = Attendance.of(job.population, directory.training, job.seed, job.reply_bytes)
        fixed = not isinstance(job.custody, NoCustody)
        roster = Roster(self.grid, job.config, directory, settings.node_timeout, fixed)
        if start is not None:
            job.custody.restore(start.privacy, start.noise)
        plan = [PhasePlan(phase.name, phase.rounds) for phase in job.phases]
        done = None if start is None else (job.phases[start.phase].name, start.round)
        for observer in job.observers:
            observer.run_started(plan, done)
        if start is not None:
            self.outcome.artefacts.update(start.artefacts)
            self.outcome.counters.update(start.counters)
            self.outcome.counters["earlier_s"] = start.counters["elapsed_s"]
            self._attendance.clock_s = start.counters.get(CLOCK, 0.0)
            self._best = start.best
            self._stopped.update(start.privacy.get("stopped", {}))
            if start.memories:
                self._memories.restore(start)
        self._count(start_s=time.perf_counter() - job.began)
        for index in range(start.phase if start else 0, len(job.phases)):
            self._run_phase(index, roster, start if start and start.phase == index else None)
        self.outcome.privacy = self._statement()
        return self.outcome

    def _statement(self) -> dict[str, Any] | None:
        told = self.job.custody.statement()
        return None if told is None else {**told, "stopped_after": dict(self._stopped) or None}

    def _run_phase(self, index: int, roster: Roster, start: Checkpoint | None) -> None:
        job, settings, phase = self.job, self.job.federation, self.job.phases[index]
        stepper = settings.server_optimizer.build()
        strategy = SumStrategy(
            phase, index, roster.directory, settings.sampler, stepper, job.config, job.seed, job.custody,
            self._attendance, settings.min_clients,
        )  # fmt: skip
        self._look_round(roster, strategy)
        if start is None:
            state = phase.initial(Streams(job.seed, phase.name), self.outcome.artefacts)
            first = 1
        else:
            state, first = start.state, start.round + 1
            stepper.moments.update(start.moments)
        strategy.aggregation = settings.aggregation
        if phase.rounds and phase.needs is Needs.SUM:
            settings.aggregation.check_phase(phase.name, phase.template(phase.broadcast(state)))
        self._without_sum = 0
        number, last = first - 1, not self._goes_on(strategy, state, first)
        if start is None or self._stopped_anew(strategy, start):
            self._report(strategy, number, Tally(), 0.0, self._evaluate(strategy, state, number, last))
        while not last:
            number += 1
            began = time.perf_counter()
            state, metrics = self._train(strategy, state, number)
            trained = strategy.tally
            self._look_round(roster, strategy)
            last = not self._goes_on(strategy, state, number + 1)
            evaluated = last or number % settings.evaluate_every == 0
            if evaluated:
                metrics += self._evaluate(strategy, state, number, last) + self._spent(strategy, number)
            ended = time.perf_counter()
            self._report(strategy, number, trained, ended - began, metrics)
            if evaluated:
                self._keep_best(strategy, state, number, metrics)
            if last or number % settings.checkpoint_every == 0:
                self._checkpoint(strategy, state, number)
            self._count(save_s=time.perf_counter() - ended)
        self.outcome.artefacts[phase.name] = dict(state)

    def _look_round(self, roster: Roster, strategy: SumStrategy) -> None:
        """Let the strategy know who is there now."""
        roster.refresh()
        strategy.meet(roster.directory, roster.away)
        self._memories.away = roster.away

    def _goes_on(self, strategy: SumStrategy, state: State, number: int) -> bool:
        """Tell whether a phase has a round ``number``, and the budget allows it."""
        if number > strategy.phase.rounds:
            return False
        if self.job.custody.affords(strategy.phase, state, number, strategy.cohort(number)):
            return True
        _log.warning("phase %s: round %d would exceed the privacy budget; it ends here", strategy.phase.name, number)
        self._stopped[strategy.phase.name] = number - 1
        return False

    def _stopped_anew(self, strategy: SumStrategy, start: Checkpoint) -> bool:
        """Tell whether a resumed phase has no budget left for the next round, and was not evaluated as its end yet."""
        name = strategy.phase.name
        return name in self._stopped and name not in start.privacy.get("stopped", {})

    def _spent(self, strategy: SumStrategy, number: int) -> list[Metric]:
        epsilon = self.job.custody.epsilon
        return [] if epsilon is None else [Metric(strategy.phase.name, number, "server", None, "epsilon", epsilon, 1.0)]

    def _train(self, strategy: SumStrategy, state: State, number: int) -> tuple[State, list[Metric]]:
        began = time.perf_counter()
        arrays = encode_tensors(state)
        messages = strategy.configure_train(number, arrays, ConfigRecord(), self.grid)
        try:
            replies = exchange(self._layered, messages, self.job.federation.round_timeout)
            updated, _ = strategy.aggregate_train(number, replies)
            if strategy.tally.asked and not strategy.tally.updates:
                reasons = strategy.tally.reasons or ["no reply in time"]
                self._given_up(strategy, number, RunFailed(f"every client failed in every round: {reasons[0].strip()}"))
            self._count_lost(strategy, number)
        except SecureSumAborted as error:
            # Nothing was seen of anybody, so the next round may do better.
            _log.warning("round %d of phase %s is given up: %s", number, strategy.phase.name, error)
            updated, strategy.train_sums = None, []
            self._given_up(strategy, number, error)
        seconds, tally = time.perf_counter() - began, strategy.tally
        self._count(
            rounds=1, client_updates=tally.updates, update_s=tally.seconds, train_s=seconds,
            down_bytes=tally.received_bytes, up_bytes=tally.sent_bytes, wait_s=tally.waited_s,
            decode_s=tally.decoded_s, aggregate_s=max(0.0, seconds - tally.waited_s - tally.decoded_s),
            client_data_s=tally.data_s, client_message_s=tally.message_s,
        )  # fmt: skip
        if self._attendance.simulates:
            self.outcome.counters[CLOCK] = self._attendance.clock_s
        metrics = self._finish(strategy, strategy.train_sums, {}, "train", number)
        facts = {
            "cohort": tally.asked, "clients_failed": tally.failed, "train_seconds": seconds,
            "down_bytes": tally.received_bytes, "up_bytes": tally.sent_bytes, "retries": tally.retries,
            **self._attendance.facts(tally.turnout),
        }  # fmt: skip
        name = strategy.phase.name
        metrics += [Metric(name, number, "server", None, key, float(value), 1.0) for key, value in facts.items()]
        return decode_tensors(updated) if updated is not None else state, metrics

    def _count_lost(self, strategy: SumStrategy, number: int) -> None:
        """Note a round to which too few contributed; some of them in a row end the run.

        Raises
        ------
        RunFailed
            If there were too many.
        """
        tally, settings = strategy.tally, self.job.federation
        if not strategy.lost:
            self._lost = 0
            return
        self._lost += 1
        told = (
            f"{tally.updates} of {tally.asked} clients contributed to round {number} of phase {strategy.phase.name}, "
            f"fewer than federation.min_clients={settings.min_clients}"
        )
        if self._lost == settings.lost_rounds:
            raise RunFailed(
                f"{told}: {self._lost} such rounds in a row end the run; bring the nodes back and resume it"
            )
        _log.warning("%s: it is not applied", told)

    def _given_up(self, strategy: SumStrategy, number: int, error: RunFailed) -> None:
        """Count a round to which nobody added anything; a phase of such rounds is a failure."""
        self._without_sum += 1
        if self._without_sum == number == strategy.phase.rounds:
            raise error

    def _evaluate(self, strategy: SumStrategy, state: State, number: int, last: bool) -> list[Metric]:
        began = time.perf_counter()
        arrays = encode_tensors(state)
        messages = strategy.configure_evaluate(number, arrays, ConfigRecord(), self.grid)
        try:
            replies = exchange(self._layered, messages, self.job.federation.round_timeout)
            strategy.aggregate_evaluate(number, replies)
        except SecureSumAborted as error:
            _log.warning("evaluation after round %d of phase %s is given up: %s", number, strategy.phase.name, error)
            strategy.evaluation_sums, strategy.evaluation_tensors = [], {}
        tally = strategy.tally
        self._count(
            down_bytes=tally.received_bytes, up_bytes=tally.sent_bytes, evaluate_s=time.perf_counter() - began,
            client_evaluate_s=tally.seconds, client_data_s=tally.data_s, client_message_s=tally.message_s,
            client_evaluate_data_s=tally.data_s,
        )  # fmt: skip
        ends = last and strategy.index == len(self.job.phases) - 1
        scope: Scope = "test" if ends else "eval"
        name, told = strategy.phase.name, strategy.phase.report(state)
        own = [Metric(name, number, scope, None, key, value, 1.0) for key, value in told.items()]
        return own + self._finish(strategy, strategy.evaluation_sums, strategy.evaluation_tensors, scope, number)

    def _finish(
        self,
        strategy: SumStrategy,
        sums: Sequence[MetricSum],
        tensors: Mapping[str, Tensor],
        scope: Scope,
        number: int,
    ) -> list[Metric]:
        """Turn sums into means by group and values over groups."""
        if not self.job.custody.by_group:
            return means_of_all(strategy.phase.name, number, scope, sums)
        return means_by_group(strategy.phase, number, scope, sums, tensors)

    def _report(
        self, strategy: SumStrategy, number: int, trained: Tally, seconds: float, metrics: list[Metric]
    ) -> None:
        report = RoundReport(strategy.phase.name, number, trained.asked, trained.failed, seconds, tuple(metrics))
        for observer in self.job.observers:
            observer.round_ended(report)

    def _count(self, **amounts: float) -> None:
        for key, value in amounts.items():
            self.outcome.counters[key] = self.outcome.counters.get(key, 0.0) + value

    def _snapshot(self, strategy: SumStrategy, state: State, number: int, memories: bool = False) -> Checkpoint:
        elapsed = self.outcome.counters.get("earlier_s", 0.0) + time.perf_counter() - self._began
        return Checkpoint(
            self.job.method, strategy.index, number, state, strategy.optimizer.moments,
            dict(self.outcome.artefacts), {**self.outcome.counters, "elapsed_s": elapsed}, self._best, memories,
            {**self.job.custody.facts(), "stopped": self._stopped}, self.job.custody.tensors(),
        )  # fmt: skip

    def _keep_best(self, strategy: SumStrategy, state: State, number: int, metrics: Sequence[Metric]) -> None:
        """Save the state if its selection metric is the best of the main phase so far.

        It is that of the evaluation, or, where no evaluation has one of that name, what clients told of training in the
        round that led to the state.
        """
        told = {m.scope == "train": m.value for m in metrics if m.group is None and m.name == self.job.selection}
        value = told.get(False, told.get(True))
        if value is None or strategy.index != self.job.main_phase or not self.job.custody.lets_choose:
            return
        if self._best is None or value > self._best:
            self._best = value
            # Nothing goes on from here, so the noise that later rounds would take back is not kept with it.
            replace(self._snapshot(strategy, state, number), noise={}).save(self.job.checkpoints, BEST)

    def _checkpoint(self, strategy: SumStrategy, state: State, number: int) -> None:
        """Let the nodes save their memories first, then make the server's side visible."""
        kept = self._memories.save(strategy.index, number)
        self._snapshot(strategy, state, number, kept).save(self.job.checkpoints, NEWEST)
