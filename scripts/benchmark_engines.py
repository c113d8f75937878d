"""Time per client-update of one GPO federation: a bare PyTorch loop, and fedalign's engines on the same work.

The bare loop is what one would write by hand: it knows the network, the loss, the data and the random streams, and
nothing of federations, messages or engines. All of them must end with the same weights.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.config import RunConfig, parse, resolve, to_json
from fedalign.contribution import State
from fedalign.data.progress import silent
from fedalign.data.schema import GroupJudgments
from fedalign.errors import UserError
from fedalign.federation.conductor import Job, Outcome
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.federation.server_app import make_server_app
from fedalign.methods.pluralllm import GPOPhase, PluralLLM
from fedalign.methods.survey import points_of
from fedalign.models.gpo import GPOModel
from fedalign.objectives.gpo_nll import gpo_nll
from fedalign.report.atomic import write_json_atomic, write_text_atomic
from fedalign.report.environment import environment
from fedalign.report.metrics_log import MetricsLog
from fedalign.rng import Streams
from fedalign.site import open_site, setting

BARE, FLOWER = "bare", "flower"
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Work:
    """What is run; the same for every engine.

    Parameters
    ----------
    model : str
        Config of the network.
    clients, rounds : int
        Every client trains in every round; at least 2 rounds. The last one is not timed, since engines evaluate and
        save after it.
    seed, threads : int
    workers : int
        Ray actors of the engine flower.
    """

    model: str
    clients: int
    rounds: int
    seed: int
    threads: int
    workers: int

    @property
    def timed_updates(self) -> int:
        """Client-updates between the end of the first evaluation and the start of the last round."""
        return self.clients * (self.rounds - 1)

    def overrides(self) -> list[str]:
        """Return the configuration: the paper's method, one group a client, features as wide as MiniLM's."""
        return [
            *("method=pluralllm", "method.prior=none", "method.weight=uniform", "method.loss_reduction=mean"),
            *("method.local.optimizer=adam", "method.local.optimizer_state=persist"),
            *("method.local.proximal_mu=0", "method.local.max_grad_norm=null"),
            *("method.evaluation.draws=1", "method.evaluation.train=false"),
            *("data=synthetic_survey", f"data.groups={self.clients}", "partition=by_group", "partition.unseen=null"),
            *("encoder=hashing", "encoder.size=384", f"model={self.model}", f"seed={self.seed}"),
            *("federation=fedavg", f"federation.rounds={self.rounds}"),
            *(f"federation.{kind}_every={self.rounds + 1}" for kind in ("evaluate", "checkpoint")),
        ]

    def resolve(self, engine: str) -> dict[str, Any]:
        """Return the resolved run configuration for an engine; the bare loop reads all but the engine."""
        chosen = [f"engine={'in_process' if engine == BARE else engine}", f"engine.threads={self.threads}"]
        if engine == FLOWER:
            chosen.append(f"engine.workers={self.workers}")
        return resolve([*self.overrides(), *chosen])


@dataclass
class Stopwatch:
    """Observer that notes the time when the engine is up and after every round, from round 0, the evaluation.

    Parameters
    ----------
    began, started : float
        When the engine was called, and when it had found its nodes.
    wall, cpu : list of float
        Wall time and this process's CPU time in seconds at the end of each round.
    """

    began: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Note that the engine is up."""
        self.started = time.perf_counter()

    def round_ended(self, report: RoundReport) -> None:
        """Note the end of a round."""
        self.tick()

    def run_ended(self) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Note the time."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


@dataclass(frozen=True)
class Measurement:
    """One run.

    Parameters
    ----------
    wall_ms, cpu_ms : float
        Per client-update; ``cpu_ms`` counts this process alone.
    start_s : float
        From the call to the first message.
    weights : State
        After the last round.
    """

    wall_ms: float
    cpu_ms: float
    start_s: float
    weights: State


def measure(engine: str, work: Work) -> Measurement:
    """Run the work on an engine, or in the bare loop, and time all its rounds but the last."""
    resolved = work.resolve(engine)
    config = parse(resolved)
    torch.set_num_threads(work.threads)
    # The first full collection walks every module that was imported; whoever comes first would pay for it.
    gc.collect()
    clock, weights = run_bare(config) if engine == BARE else run_engine(config, resolved)
    wall, cpu = (1e3 * (times[-2] - times[0]) / work.timed_updates for times in (clock.wall, clock.cpu))
    return Measurement(wall, cpu, clock.started - clock.began, weights)


def run_engine(config: RunConfig, resolved: Mapping[str, Any]) -> tuple[Stopwatch, State]:
    """Run the federation as ``fedalign run`` does, metrics.jsonl included, and return its times and final weights."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        clients = len(open_site(to_json(resolved), {}).data.clients)
        log, clock = MetricsLog(place / "metrics.jsonl"), Stopwatch()
        job = Job(
            method=config.method.name,
            selection=config.method.selection,
            phases=config.method.phases(setting(config)),
            federation=config.federation,
            seed=config.seed,
            config=to_json(resolved),
            nodes=config.engine.nodes(clients),
            checkpoints=place / "checkpoints",
            observers=[log, clock],
            resume=False,
        )
        try:
            server = make_server_app(lambda _: job, outcomes.append)
            config.engine.run(server, open_site, clients, place / "clients")
        finally:
            log.run_ended()
    return clock, outcomes[0].artefacts[GPOPhase.name]


def run_bare(config: RunConfig) -> tuple[Stopwatch, State]:
    """Run the same training in plain PyTorch: one network, one Adam a client, and the mean of the deltas."""
    method, seed, rounds = config.method, config.seed, config.federation.rounds
    assert isinstance(method, PluralLLM)
    assert isinstance(config.model, GPOModel)
    data = config.data.federate(config.partition, config.encoder, Streams(seed), None, silent)
    shards = [data.shard(client.name) for client in data.clients]
    clock = Stopwatch()
    with Streams(seed).torch_default("gpo/initial"):
        network = config.model.build(config.encoder.dim, 0)
    parameters = list(network.parameters())
    optimizers = [torch.optim.Adam(parameters, fused=True) for _ in shards]
    weights = [parameter.detach().clone() for parameter in parameters]
    clock.started = time.perf_counter()
    clock.tick()
    for number in range(1, rounds + 1):
        deltas = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
        for shard, optimizer in zip(shards, optimizers, strict=True):
            generator = Streams(seed, GPOPhase.name, number, shard.client).torch("episodes")
            _assign(parameters, weights)
            _train(network, optimizer, shard.groups[0], method, generator, number, rounds)
            for delta, parameter, weight in zip(deltas, parameters, weights, strict=True):
                delta.add_(parameter.detach() - weight)
        weights = [(w.double() + delta / len(shards)).float() for w, delta in zip(weights, deltas, strict=True)]
        clock.tick()
    return clock, dict(zip([name for name, _ in network.named_parameters()], weights, strict=True))


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    judgments: GroupJudgments,
    method: PluralLLM,
    generator: torch.Generator,
    number: int,
    rounds: int,
) -> None:
    """Take one client's steps of round ``number``."""
    local = method.local
    for step in range(local.steps * (number - 1), local.steps * number):
        optimizer.param_groups[0]["lr"] = local.learning_rate(step, local.steps * rounds)
        optimizer.zero_grad()
        context, target = method.episode.draw(judgments.train, generator)
        _loss(network, judgments, context, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _loss(network: nn.Module, judgments: GroupJudgments, context: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the target points given the context points."""
    seen, hidden = points_of(judgments, context), points_of(judgments, target)
    shares = torch.cat([judgments.shares[seen.index], torch.zeros(len(hidden.index))])
    tokens = torch.cat([judgments.features[torch.cat([seen.index, hidden.index])], shares[:, None]], 1)
    mean, log_std = network(tokens, len(seen.index))
    return gpo_nll(mean, log_std, judgments.shares[hidden.index], hidden.segments, hidden.questions).mean()


def difference(weights: State, reference: State) -> float:
    """Return the largest absolute difference between two sets of weights.

    Raises
    ------
    ValueError
        If their names differ.
    """
    if weights.keys() != reference.keys():
        raise ValueError(f"weights {sorted(weights)} are not {sorted(reference)}")
    return max(float((weights[name] - reference[name]).abs().max()) for name in reference)


def repeat(engines: Sequence[str], work: Work, repeats: int) -> dict[str, list[Measurement]]:
    """Run every engine in every repeat, each time in another order, so that a slow spell of the machine hits all."""
    measured: dict[str, list[Measurement]] = {engine: [] for engine in engines}
    for number in range(repeats):
        turn = number % len(engines)
        for engine in [*engines[turn:], *engines[:turn]]:
            measured[engine].append(measure(engine, work))
            last = measured[engine][-1]
            print(f"repeat {number + 1}/{repeats}  {engine:<10}  {last.wall_ms:8.2f} ms", file=sys.stderr, flush=True)
    return measured


def to_report(work: Work, measured: Mapping[str, Sequence[Measurement]]) -> dict[str, Any]:
    """Return every number of a benchmark as plain data; ratios are to the bare loop of the same repeat."""
    machine = environment(work.seed)
    engines: dict[str, Any] = {}
    for engine, runs in measured.items():
        pairs = list(zip(runs, measured[BARE], strict=True))
        # The work of the engine flower is done in other processes, whose CPU time this one does not see.
        here = engine != FLOWER
        engines[engine] = {
            "wall_ms": [run.wall_ms for run in runs],
            "wall_ratio": [run.wall_ms / bare.wall_ms for run, bare in pairs],
            "cpu_ms": [run.cpu_ms for run in runs] if here else None,
            "cpu_ratio": [run.cpu_ms / bare.cpu_ms for run, bare in pairs] if here else None,
            "start_s": [run.start_s for run in runs],
            "max_difference": max(difference(run.weights, bare.weights) for run, bare in pairs),
        }
    return {
        "work": {**asdict(work), "timed_updates": work.timed_updates, "overrides": work.overrides()},
        "machine": {key: machine[key] for key in ("machine", "cpu_count", "python", "versions")},
        "engines": engines,
    }


def to_table(report: Mapping[str, Any]) -> str:
    """Return the report's medians over repeats as a Markdown table."""
    lines = [
        "| engine | ms per client-update | to bare | CPU ms | CPU to bare | start-up s | max weight difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for engine, numbers in report["engines"].items():
        columns = (("wall_ms", 1), ("wall_ratio", 2), ("cpu_ms", 1), ("cpu_ratio", 2), ("start_s", 1))
        cells = [_median(numbers[key], digits) for key, digits in columns]
        lines.append(f"| {' | '.join([engine, *cells])} | {numbers['max_difference']:.1e} |")
    return "\n".join(lines) + "\n"


def _median(values: Sequence[float] | None, digits: int) -> str:
    return "" if values is None else f"{statistics.median(values):.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if an engine's final weights are not the bare loop's, 2 for a user's mistake."""
    given = _parse(arguments)
    work = Work(given.model, given.clients, given.rounds, given.seed, given.threads, given.workers)
    try:
        for engine in given.engines:
            parse(work.resolve(engine))  # so that a mistake shows before minutes are spent
        report = to_report(work, repeat(given.engines, work, given.repeats))
    except UserError as error:
        print(f"benchmark_engines: {error}", file=sys.stderr)
        return 2
    table = to_table(report)
    print(table, end="")
    if given.out is not None:
        write_json_atomic(given.out.with_suffix(".json"), report)
        write_text_atomic(given.out.with_suffix(".md"), table)
    wrong = [name for name, numbers in report["engines"].items() if not numbers["max_difference"] <= TOLERANCE]
    if wrong:
        print(f"benchmark_engines: not the bare loop's weights within {TOLERANCE}: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark_engines", description="Time a bare PyTorch loop and the engines.")
    every = [BARE, "in_process", FLOWER]
    parser.add_argument("--engines", nargs="+", choices=every, default=every, help="bare must be one of them")
    parser.add_argument("--model", default="gpo", help="config of the network: gpo (default), gpo_small, ...")
    parser.add_argument("--clients", type=int, default=8, help="one group each (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the last is not timed (default 5)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each engine, interleaved (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads (default 1)")
    parser.add_argument("--workers", type=int, default=1, help="Ray actors of the engine flower (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every number, and the table as FILE.md")
    given = parser.parse_args(arguments)
    if BARE not in given.engines:
        parser.error("--engines must name bare, which the others are compared with")
    if given.rounds < 2 or given.repeats < 1 or given.threads < 1:
        parser.error("--rounds must be 2 or more, --repeats and --threads 1 or more")
    return given


if __name__ == "__main__":
    sys.exit(main())
