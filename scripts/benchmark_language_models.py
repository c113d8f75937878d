"""What privacy costs a step of alignment, and what a key-value cache saves in writing.

A plain step and a DP-SGD step train the same LoRA adapter on the same batch by the same loss; without clipping and
noise their gradients must agree. Both ways of writing must give the same tokens. Times are CPU times of this process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.generation import generate
from fedalign.models.language_model import LanguageModelSpec, ValuedPolicy
from fedalign.objectives.ppo import clipped_policy_loss, token_log_probabilities, value_loss
from fedalign.privacy.dp_sgd import private_gradients
from fedalign.privacy.local import DPSGD, GradSample, LocalPrivacy
from fedalign.privacy.noise import SystemNoise
from fedalign.report.atomic import write_json_atomic, write_text_atomic
from fedalign.report.environment import environment
from fedalign.rng import Streams

SFT, PPO = "sft", "ppo"
LOSSES = (SFT, PPO)
TOLERANCE = 1e-4
SAME_ROWS = 0.9  # sums in another order may send a rare draw to the neighbouring token, and its text elsewhere


@dataclass(frozen=True)
class Work:
    """What is timed.

    Parameters
    ----------
    model : str
        Hub name or local folder of a causal model.
    target_modules : tuple of str or None
    batch, tokens : int
        Texts of a step and their length; the first quarter of a text is its prompt.
    prompts, prompt_tokens, new_tokens : int
        Rows that are written at once, what they continue, and how far.
    mode : str
        How gradients of texts are found.
    seed, threads : int
    """

    model: str
    target_modules: tuple[str, ...] | None
    batch: int
    tokens: int
    prompts: int
    prompt_tokens: int
    new_tokens: int
    mode: GradSample
    seed: int
    threads: int

    def build(self) -> ValuedPolicy:
        """Return the network, with an adapter and a head that act.

        Raises
        ------
        UserError
            If the model cannot be had.
        """
        torch.manual_seed(self.seed)
        network = LanguageModelSpec(self.model, 4, 8.0, 0.0, self.target_modules, False, "float32", "cpu").build(
            "--model"
        )
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return network

    def draw(self, network: ValuedPolicy, rows: int, length: int) -> Tensor:
        """Return random texts, int64 of shape (rows, length)."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(network.policy.transformer.vocabulary, (rows, length), generator=generator)


class Texts:
    """A batch of texts as the units of DP-SGD, with what PPO noted when they were drawn.

    Parameters
    ----------
    network : ValuedPolicy
    work : Work
    loss : str
    """

    def __init__(self, network: ValuedPolicy, work: Work, loss: str) -> None:
        self._network, self._loss = network, loss
        self.units = work.batch
        self._ids = work.draw(network, work.batch, work.tokens)
        self._mask = torch.ones_like(self._ids)
        self._response = (torch.arange(work.tokens) >= work.tokens // 4).long().expand_as(self._ids)
        generator = torch.Generator().manual_seed(work.seed)
        self._advantages, self._returns, away = torch.randn(3, work.batch, work.tokens - 1, generator=generator)
        with torch.no_grad():
            logits, values = network(self._ids, self._mask)
            self._old = token_log_probabilities(logits, self._ids, self._response) + 0.1 * away
            self._old_values = values[:, :-1] + 0.1 * away

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        """Return the loss of each chosen text, shape (U,)."""
        ids, mask, response = self._ids[chosen], self._mask[chosen], self._response[chosen]
        own = response[:, 1:]
        if self._loss == SFT:
            logits = self._network.policy(ids, mask, None)
            return -token_log_probabilities(logits, ids, response).sum(1) / own.sum(1)
        logits, values = self._network(ids, mask)
        log_probs = token_log_probabilities(logits, ids, response)
        policy = clipped_policy_loss(log_probs, self._old[chosen], self._advantages[chosen], own, 0.2)
        value = value_loss(values[:, :-1], self._old_values[chosen], self._returns[chosen], own, 0.2)
        return policy + 0.1 * value


class Steps:
    """Steps of Adam on one batch, plain and private.

    Parameters
    ----------
    work : Work
    loss : str
    """

    def __init__(self, work: Work, loss: str) -> None:
        self._work, self._streams = work, Streams(work.seed)
        self._network = work.build()
        self._network.head.requires_grad_(loss != SFT)
        self._texts = Texts(self._network, work, loss)
        self._parameters = [p for p in self._network.parameters() if p.requires_grad]
        # Too small a rate to change what is computed from one step to the next.
        self._optimizer = torch.optim.Adam(self._parameters, lr=1e-9, fused=True)

    def plain(self) -> float:
        """Return the CPU seconds of a step along the mean of the texts' gradients."""
        everyone = torch.arange(self._work.batch)
        return _seconds(lambda: self._step(lambda: self._texts.losses(everyone, 0).mean().backward()))  # type: ignore[no-untyped-call]

    def private(self) -> tuple[float, float]:
        """Return the CPU seconds of a round's first DP-SGD step, which checks gradients, and of the next."""
        with private_gradients(self._network, self._texts, self._privacy(1.0, 1.0), self._streams) as gradients:
            return tuple(_seconds(lambda: self._step(lambda: gradients.write(0))) for _ in range(2))  # type: ignore[return-value]

    def difference(self) -> float:
        """Return how far the gradient of DP-SGD without clipping and noise is from the plain one, relative to it."""
        self.plain()
        expected = self._gradient()
        with private_gradients(self._network, self._texts, self._privacy(1e9, 0.0), self._streams) as gradients:
            gradients.write(0)
            return float((self._gradient() - expected).norm() / expected.norm())

    def _step(self, write: Callable[[], object]) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        write()
        self._optimizer.step()

    def _privacy(self, clip: float, noise_multiplier: float) -> LocalPrivacy:
        return LocalPrivacy(DPSGD("example", clip, 1.0, self._work.mode), noise_multiplier, SystemNoise())

    def _gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None]).double()


def time_steps(work: Work, loss: str, repeats: int) -> dict[str, Any]:
    """Return CPU seconds of plain and private steps, one after the other, and the ratio in every repeat.

    Raises
    ------
    RuntimeError
        If the two do not compute the same gradient.
    """
    steps = Steps(work, loss)
    difference = steps.difference()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{loss}: DP-SGD without clipping and noise is off the plain gradient by {difference:.1e}")
    runs = []
    for _ in range(repeats):
        plain = steps.plain()
        first, private = steps.private()
        runs.append((plain, private, first))
    plain_s, private_s, first_s = ([float(run[i]) for run in runs] for i in range(3))
    return {
        "plain_s": plain_s,
        "private_s": private_s,
        "private_first_s": first_s,
        "ratio": [b / a for a, b in zip(plain_s, private_s, strict=True)],
        "first_ratio": [b / a for a, b in zip(plain_s, first_s, strict=True)],
        "gradient_difference": difference,
    }


def time_writing(work: Work, repeats: int) -> dict[str, Any]:
    """Return CPU seconds of writing with the cache and without, and the ratio in every repeat.

    Raises
    ------
    RuntimeError
        If the two do not write the same texts.
    """
    network = work.build()
    ids = work.draw(network, work.prompts, work.prompt_tokens)
    written: dict[bool, Tensor] = {}

    def write(use_cache: bool) -> None:
        generator = torch.Generator().manual_seed(work.seed)
        written[use_cache] = generate(
            network.policy, ids, torch.ones_like(ids), None, work.new_tokens, 1.0, generator, use_cache
        )

    write(True)
    runs = [(_seconds(lambda: write(True)), _seconds(lambda: write(False))) for _ in range(repeats)]
    width = min(tokens.shape[1] for tokens in written.values())
    same = float((written[True][:, :width] == written[False][:, :width]).all(1).float().mean())
    if same < SAME_ROWS:
        raise RuntimeError(f"with the cache only {same:.0%} of the texts are those without")
    return {
        "cached_s": [cached for cached, _ in runs],
        "uncached_s": [uncached for _, uncached in runs],
        "ratio": [uncached / cached for cached, uncached in runs],
        "tokens_written": width,
        "same_texts": same,
    }


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of a piece of work in this process, which others on the machine hardly touch."""
    began = time.process_time()
    work()
    return time.process_time() - began


def to_report(work: Work, repeats: int) -> dict[str, Any]:
    """Time everything and return it as plain data."""
    torch.set_num_threads(work.threads)
    machine = environment(work.seed)
    return {
        "work": {**asdict(work), "model": Path(work.model).name},
        "machine": {key: machine[key] for key in ("machine", "cpu_count", "python", "versions")},
        "steps": {loss: time_steps(work, loss, repeats) for loss in LOSSES},
        "writing": time_writing(work, repeats),
    }


def to_table(report: Mapping[str, Any]) -> str:
    """Return the report's medians over repeats as a Markdown table."""
    work, writing = report["work"], report["writing"]
    lines = ["| what | without, CPU ms | with, CPU ms | ratio | first step's ratio |", "|---|---:|---:|---:|---:|"]
    for loss, numbers in report["steps"].items():
        what = f"privacy in a step, {loss}, {work['batch']} texts of {work['tokens']} tokens"
        lines.append(_line(what, numbers["plain_s"], numbers["private_s"], numbers["ratio"], numbers["first_ratio"]))
    what = f"cache, {work['prompts']} prompts of {work['prompt_tokens']} tokens, {writing['tokens_written']} new ones"
    lines.append(_line(what, writing["uncached_s"], writing["cached_s"], writing["ratio"], None))
    return "\n".join(lines) + "\n"


def _line(
    what: str, without: Sequence[float], with_: Sequence[float], ratio: Sequence[float], first: Sequence[float] | None
) -> str:
    cells = [f"{1e3 * statistics.median(without):,.0f}", f"{1e3 * statistics.median(with_):,.0f}"]
    cells += ["" if ratios is None else f"{statistics.median(ratios):.2f}" for ratios in (ratio, first)]
    return f"| {' | '.join([what, *cells])} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table; 1 if two ways that should agree do not, 2 for a user's mistake."""
    given = _parse(arguments)
    targets = None if given.target_modules is None else tuple(given.target_modules)
    work = Work(
        *(given.model, targets, given.batch, given.tokens, given.prompts, given.prompt_tokens, given.new_tokens),
        *(given.mode, given.seed, given.threads),
    )
    try:
        report = to_report(work, given.repeats)
    except (UserError, RuntimeError) as error:
        print(f"benchmark_language_models: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    table = to_table(report)
    print(table, end="")
    if given.out is not None:
        write_json_atomic(given.out.with_suffix(".json"), report)
        write_text_atomic(given.out.with_suffix(".md"), table)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark_language_models", description="Time private steps against plain ones, and a cache in writing."
    )
    parser.add_argument("--model", required=True, help="Hub name or local folder of a causal model")
    parser.add_argument("--target-modules", nargs="+", metavar="NAME", help="matrices to adapt (default peft's choice)")
    parser.add_argument("--batch", type=int, default=32, help="texts of a step (default 32)")
    parser.add_argument("--tokens", type=int, default=64, help="of a text (default 64)")
    parser.add_argument("--prompts", type=int, default=32, help="rows written at once (default 32)")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--mode", choices=["hooks", "functorch", "ghost", "loop"], default="hooks")
    parser.add_argument("--repeats", type=int, default=5, help="of each, interleaved (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every number, and the table as FILE.md")
    given = parser.parse_args(arguments)
    sizes = (given.batch, given.prompts, given.prompt_tokens, given.new_tokens, given.repeats, given.threads)
    if min(sizes) < 1 or given.tokens < 4:
        parser.error("--tokens must be 4 or more, all other sizes 1 or more")
    return given


if __name__ == "__main__":
    sys.exit(main())
