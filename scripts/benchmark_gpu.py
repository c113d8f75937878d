"""What the training of a language model gains by precision and compiling, and by clients that share one GPU.

Steps train the same adapter on the same batch by the same loss. What is compiled must give the plain gradient, and
half precision one that points its way. Times are wall times in which the device has finished; repeats are
interleaved, and a ratio is to plain float32 in the same repeat.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedalign.errors import RunFailed, UserError
from fedalign.models.language_model import LanguageModelSpec, ValuedPolicy
from fedalign.models.lora_base import forget_bases
from fedalign.objectives.ppo import token_log_probabilities
from fedalign.pretrained import Dtype
from fedalign.report.atomic import write_json_atomic, write_text_atomic
from fedalign.report.environment import environment
from scripts.benchmark import put
from scripts.benchmark_task import measure, run_engine
from scripts.benchmark_text import Texts, enlarged

PLAIN = "float32"
WAYS: Mapping[str, tuple[Dtype, bool]] = {
    PLAIN: ("float32", False),
    "float32, compiled": ("float32", True),
    "bfloat16": ("bfloat16", False),
    "bfloat16, compiled": ("bfloat16", True),
}
TOLERANCE: Mapping[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.2}
"""How far a gradient may be from the plain one, as a share of its length."""
MARKS = ("<!-- gpu -->", "<!-- end of gpu -->")
_MEGABYTE = 2**20

Keep = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Work:
    """What steps train.

    Parameters
    ----------
    model, device : str
    batch, tokens : int
        Texts of a step, and their length.
    steps : int
        That are timed together.
    """

    model: str
    device: str
    batch: int
    tokens: int
    steps: int

    def build(self, dtype: Dtype, compile: bool) -> ValuedPolicy:
        """Return a network whose adapter acts."""
        torch.manual_seed(0)
        spec = LanguageModelSpec(self.model, 8, 16.0, 0.0, None, False, dtype, self.device, compile)
        network = spec.build("--model")
        network.head.requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in (p for p in network.parameters() if p.requires_grad):
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.02)
        return network


class Steps:
    """Steps of Adam on one batch, in one way.

    Parameters
    ----------
    work : Work
    dtype : str
    compile : bool
    """

    def __init__(self, work: Work, dtype: Dtype, compile: bool) -> None:
        self._work, self._network = work, work.build(dtype, compile)
        generator = torch.Generator().manual_seed(0)
        vocabulary = self._network.policy.transformer.vocabulary
        self._ids = torch.randint(vocabulary, (work.batch, work.tokens), generator=generator).to(work.device)
        self._parameters = [p for p in self._network.parameters() if p.requires_grad]
        # Too small a rate to change what is computed from one step to the next.
        self._optimizer = torch.optim.Adam(self._parameters, lr=1e-9, fused=True)
        self.first_s = self.timed(1)

    def timed(self, steps: int) -> float:
        """Return the seconds that steps take."""
        _finish(self._work.device)
        began = time.perf_counter()
        for _ in range(steps):
            self._optimizer.zero_grad(set_to_none=True)
            mask = torch.ones_like(self._ids)
            logits = self._network.policy(self._ids, mask, None)
            (-token_log_probabilities(logits, self._ids, mask).mean()).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        _finish(self._work.device)
        return time.perf_counter() - began

    def gradient(self) -> Tensor:
        """Return the last step's gradient, float64 on the CPU."""
        return torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None]).double().cpu()


def time_steps(work: Work, repeats: int) -> dict[str, Any]:
    """Return times of steps in every way, what compiling took, peak memory, and how far the gradient is off.

    Raises
    ------
    RuntimeError
        If a way does not compute the plain gradient.
    """
    peaks = {name: peak_of_steps(work, *settings) for name, settings in WAYS.items()}
    ways = {name: Steps(work, *settings) for name, settings in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for number in range(repeats):
        turn = number % len(order)
        for name in [*order[turn:], *order[:turn]]:
            times[name].append(ways[name].timed(work.steps) / work.steps)
    plain = ways[PLAIN].gradient()
    report = {}
    for name, steps in ways.items():
        off = float((steps.gradient() - plain).norm() / plain.norm())
        if not off <= TOLERANCE[WAYS[name][0]]:
            raise RuntimeError(f"{name}: its gradient is off the plain one by {off:.1e} of its length")
        report[name] = {
            "step_s": times[name],
            "ratio": [mine / other for mine, other in zip(times[name], times[PLAIN], strict=True)],
            "first_s": steps.first_s,
            "peak_mb": peaks[name],
            "gradient_off": off,
        }
    return report


def engines(device: str, workers: Sequence[int]) -> dict[str, list[str]]:
    """Return what clients work on: this process, or workers that share the device, and as few cores as there are."""
    chosen = {"in_process": ["engine=in_process"]}
    for number in workers:
        cores = math.floor(1000 * min(1.0, (os.cpu_count() or 1) / number)) / 1000
        of_ray = ["engine=ray", f"engine.workers={number}", f"engine.cpus_per_worker={cores}"]
        if device.startswith("cuda"):
            # A worker sees one GPU, whichever that is.
            of_ray += [f"engine.gpus_per_worker={1 / number:.4f}", "model.device=cuda"]
        chosen[f"ray, {number} worker{'s' * (number > 1)}"] = of_ray
    return chosen


def time_clients(work: Texts, workers: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return times of client-updates by engine, and the most memory of the device that all processes held."""
    chosen = engines(work.device, workers)
    report: dict[str, Any] = {name: {"wall_ms": [], "used_mb": []} for name in chosen}
    for number in range(repeats):
        turn = number % len(chosen)
        for name in [*list(chosen)[turn:], *list(chosen)[:turn]]:
            forget_models(work.device)
            with _peak_of_device(work.device) as held:
                told = measure(work, functools.partial(run_engine, engine=chosen[name]))
            report[name]["wall_ms"].append(told.wall_ms)
            report[name]["used_mb"].append(held[0] / _MEGABYTE if work.device.startswith("cuda") else None)
    for numbers in report.values():
        alone = report["in_process"]["wall_ms"]
        numbers["ratio"] = [mine / other for mine, other in zip(numbers["wall_ms"], alone, strict=True)]
    return report


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def forget_models(device: str) -> None:
    """Give all of a GPU's memory back that no tensor in use takes."""
    forget_bases()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def peak_of_steps(work: Work, dtype: Dtype, compile: bool) -> float | None:
    """Return the most megabytes that one way of training takes on a GPU, its weights among them; else None."""
    if not work.device.startswith("cuda"):
        return None
    forget_models(work.device)
    torch.cuda.reset_peak_memory_stats(work.device)
    before = torch.cuda.memory_allocated(work.device)
    Steps(work, dtype, compile).timed(1)
    return (torch.cuda.max_memory_allocated(work.device) - before) / _MEGABYTE


@contextmanager
def _peak_of_device(device: str) -> Iterator[list[int]]:
    """Yield a list that holds, at the end, the most bytes of a GPU that were taken, whoever took them."""
    held, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            free, total = torch.cuda.mem_get_info(device)
            held[0] = max(held[0], total - free)

    watcher = threading.Thread(target=watch, daemon=True) if device.startswith("cuda") else None
    if watcher is not None:
        watcher.start()
    try:
        yield held
    finally:
        over.set()
        if watcher is not None:
            watcher.join()


def to_report(
    work: Work, clients: Texts | None, workers: Sequence[int], repeats: int, label: str, keep: Keep = lambda _: None
) -> dict[str, Any]:
    """Measure everything and return it as plain data, with ``label`` in place of the model's folder.

    ``keep`` is given what there is before clients are timed, who may run out of memory.
    """
    machine = environment(0)
    network = work.build("float32", False)
    report = {
        "work": asdict(replace(work, model=label)),
        "parameters": sum(p.numel() for p in network.parameters()),
        "device": torch.cuda.get_device_name(work.device) if work.device.startswith("cuda") else "cpu",
        "machine": {key: machine[key] for key in ("machine", "cpu_count", "python", "versions")},
        "repeats": repeats,
        "steps": time_steps(work, repeats),
    }
    if clients is not None:
        keep(report)
        report["federation"] = asdict(replace(clients, model=label))
        report["clients"] = time_clients(clients, workers, repeats)
    return report


def to_table(report: Mapping[str, Any]) -> str:
    """Return the medians over repeats as Markdown tables."""
    work = report["work"]
    lines = [
        f"{report['parameters']:,} parameters ({work['model']}) on {report['device']}, {report['repeats']} repeats; a "
        f"step has {work['batch']} texts of {work['tokens']} tokens:",
        "",
        "| weights | ms a step | tokens/s | to float32 | first step s | peak MB | gradient off by |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, numbers in report["steps"].items():
        step = statistics.median(numbers["step_s"])
        speed = work["batch"] * work["tokens"] / step
        cells = (
            f"{1e3 * step:.1f} | {speed:,.0f} | {statistics.median(numbers['ratio']):.2f} | {numbers['first_s']:.1f}"
        )
        lines.append(f"| {name} | {cells} | {_number(numbers['peak_mb'])} | {numbers['gradient_off']:.0e} |")
    if "clients" in report:
        told = report["federation"]
        lines += [
            "",
            f"{told['clients']} clients a round, {told['steps']} steps of {told['batch']} pairs each, in "
            f"{told['dtype']}:",
            "",
            "| clients work in | ms per client-update | to in_process | MB of the device in use |",
            "|---|---:|---:|---:|",
        ]
        for name, numbers in report["clients"].items():
            used = [value for value in numbers["used_mb"] if value is not None]
            cells = f"{statistics.median(numbers['wall_ms']):.1f} | {statistics.median(numbers['ratio']):.2f}"
            lines.append(f"| {name} | {cells} | {_number(max(used) if used else None)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its tables; 1 if gradients that should agree do not, 2 for a user's mistake."""
    given = _parse(arguments)
    torch.set_num_threads(given.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = _measured(given, Path(folder))
        _write(given.out, report)
        if given.page is not None:
            put(given.page, to_table(report), MARKS)
    except (UserError, RunFailed, RuntimeError) as error:
        print(f"benchmark_gpu: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    print(to_table(report), end="")
    return 0


def _write(out: Path | None, report: Mapping[str, Any]) -> None:
    if out is not None:
        write_json_atomic(out, report)
        write_text_atomic(out.with_suffix(".md"), to_table(report))


def _measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {given.device}: PyTorch finds no GPU here; --device cpu tries the script out")
    model, label = given.model, Path(given.model).name
    if given.size is not None:
        width, layers = given.size
        model, label = enlarged(model, width, layers, folder), f"GPT-2, width {width}, {layers} layers"
    work = Work(model, given.device, given.batch, given.tokens, given.steps)
    clients = Texts(model, given.device, given.dtype, threads=given.threads) if given.workers else None
    return to_report(work, clients, given.workers, given.repeats, label, functools.partial(_write, given.out))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark_gpu", description="Time language models on a GPU.")
    parser.add_argument("--model", required=True, help="local folder of a causal model with its tokenizer")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("WIDTH", "LAYERS"), help="a GPT-2 of this size with random weights"
    )
    parser.add_argument("--device", default="cuda", help="PyTorch device (default cuda)")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="bfloat16", help="of the clients' frozen weights")
    parser.add_argument("--batch", type=int, default=32, help="texts of a step (default 32)")
    parser.add_argument("--tokens", type=int, default=128, help="of a text (default 128)")
    parser.add_argument("--steps", type=int, default=10, help="timed together (default 10)")
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2, 4], help="that share the device; none skips")
    parser.add_argument("--repeats", type=int, default=3, help="of each, interleaved (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every number, and the tables as FILE.md")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the tables between the page's marks")
    given = parser.parse_args(arguments)
    sizes = (given.batch, given.steps, given.repeats, given.threads, *given.workers)
    if min(sizes) < 1 or given.tokens < 2:
        parser.error("--tokens must be 2 or more, all other sizes 1 or more")
    return given


if __name__ == "__main__":
    sys.exit(main())
