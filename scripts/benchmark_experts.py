"""What shared expert streams save in serving stated preferences, and what a control model's training needs of memory.

Requests under eight preferences, each of which wants one side of three dimensions, are served three ways: in one batch
by six experts under a control model; by eight models whose weights are the mean of three experts', one after another;
and by the same eight as adapters of one model, in one batch. All write as many tokens. Times are CPU times of this
process; bytes are those that PyTorch's allocator hands out.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.models.causal import CausalModel
from fedalign.models.control import Control, Told, log_weights
from fedalign.models.control_constant import ConstantSpec
from fedalign.models.control_transformer import TransformerSpec
from fedalign.models.experts import Pairs
from fedalign.models.generation import choose
from fedalign.models.lora_experts import LoraExperts, merged_adapter
from fedalign.models.merged_generation import Merger, generate_merged
from fedalign.models.mixing import Linear, Spoken, spoken_of
from fedalign.objectives.expert_mixture import rebel_loss
from fedalign.report.atomic import write_json_atomic, write_text_atomic
from fedalign.report.environment import environment

DIMENSIONS, EXPERTS, PREFERENCES = 3, 6, 8
TRAINED = (2, 4, 8, 16)
"""Numbers of experts that training memory is measured for."""
_COUNTED = 3
"""How many times bytes are counted."""
HEAD = 48
"""Units of an attention head of the model that is drawn."""
SCALE = 2.0  # alpha / rank
SAME_ROWS = 0.9  # sums in another order may send a rare draw to the neighbouring token, and its text elsewhere


@dataclass(frozen=True)
class Work:
    """What is compared.

    Parameters
    ----------
    model : str or None
        Hub name or local folder of a causal model; None draws GPT-2s of the next three sizes.
    layers, vocabulary : int
    widths : tuple of int
        A model for each; training and numbers of active experts are measured on the first.
    target_modules : tuple of str
        Matrices that experts adapt.
    rank : int
    each : int
        Requests under each of the eight preferences, at once.
    prompt_tokens, new_tokens : int
    batch : int
        Texts of a training step.
    seed, threads : int
    """

    model: str | None
    layers: int
    vocabulary: int
    widths: tuple[int, ...]
    target_modules: tuple[str, ...]
    rank: int
    each: int
    prompt_tokens: int
    new_tokens: int
    batch: int
    seed: int
    threads: int

    @property
    def requests(self) -> int:
        """Requests that are served at once."""
        return PREFERENCES * self.each

    def write_model(self, folder: Path, width: int) -> Path:
        """Write a GPT-2 with random weights, or find the model that is named.

        Raises
        ------
        UserError
            If it cannot be had.
        """
        if self.model is not None:
            return model_folder(self.model, "--model")
        from transformers import GPT2Config, GPT2LMHeadModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        size: dict[str, Any] = {"vocab_size": self.vocabulary, "n_embd": width, "n_head": max(1, width // HEAD)}
        size |= {"n_layer": self.layers, "n_positions": self.prompt_tokens + self.new_tokens}
        torch.manual_seed(self.seed)
        config = GPT2Config(**size, eos_token_id=0, bos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(folder)
        return folder


class World:
    """A model with random adapters, and requests.

    Parameters
    ----------
    work : Work
    folder : Path
        Of the model.
    """

    def __init__(self, work: Work, folder: Path) -> None:
        self.work, self._folder = work, folder
        self._generator = torch.Generator().manual_seed(work.seed)
        self.base = CausalModel(folder, "float32", "cpu")
        names = work.target_modules
        self._places = {path: m for path, m in self.base.network.named_modules() if path.endswith(names)}
        if not self._places:
            raise UserError(f"--target-modules {' '.join(names)}: the model has none of that name")
        self.adapters = [self._adapter() for _ in range(EXPERTS)]
        # Which expert stands for which side: two experts a dimension, one of which a preference wants.
        sides = itertools.product((0, 1), repeat=DIMENSIONS)
        wanted = [[2 * place + side for place, side in enumerate(each)] for each in sides]
        self.wanted = torch.tensor(wanted)
        self.ids = self.draw(work.requests, work.prompt_tokens)
        self.draws = torch.rand(work.requests, work.new_tokens, generator=self._generator, dtype=torch.float64)

    def draw(self, rows: int, length: int) -> Tensor:
        """Return random texts, int64 of shape (rows, length)."""
        return torch.randint(self.base.vocabulary, (rows, length), generator=self._generator)

    def experts(self, adapters: Sequence[State]) -> LoraExperts:
        """Return experts on the model."""
        found = LoraExperts(self._folder, [f"expert-{i}" for i in range(len(adapters))], "float32", "cpu")
        found.load(adapters, [SCALE] * len(adapters))
        return found

    def many(self, count: int) -> list[State]:
        """Return the adapters of so many experts."""
        return [*self.adapters, *(self._adapter() for _ in range(count - EXPERTS))][:count]

    def control(self, experts: int) -> Control:
        """Return a control model whose weights follow the text."""
        torch.manual_seed(self.work.seed)
        longest = self.work.prompt_tokens + self.work.new_tokens
        spec = TransformerSpec(None, 64, 2, 4, 128, longest, "vector")
        network = spec.build(experts, PREFERENCES, self.base.vocabulary, torch.device("cpu"))
        with torch.no_grad():
            for parameter in network.head.parameters():
                parameter.normal_(0.0, 0.3)
        return network

    def soups(self) -> list[State]:
        """Return the mean adapter of each preference's experts."""
        return [merged_adapter([self.adapters[i] for i in own]) for own in self.wanted.tolist()]

    def merged_model(self, soup: State) -> CausalModel:
        """Return a model of its own that has a soup in its weights."""
        model = CausalModel(self._folder, "float32", "cpu")
        model.network = copy.deepcopy(model.network)
        places = dict(model.network.named_modules())
        with torch.no_grad():
            for path in self._places:
                a, b = (soup[f"base_model.model.{path}.lora_{factor}.weight"] for factor in "AB")
                change = SCALE * (b @ a)
                weight = places[path].weight
                weight += change if isinstance(places[path], nn.Linear) else change.T
        return model

    def _adapter(self) -> State:
        found: State = {}
        for path, module in self._places.items():
            weight = module.weight
            outputs, inputs = weight.shape if isinstance(module, nn.Linear) else weight.T.shape
            down = torch.randn(self.work.rank, inputs, generator=self._generator) / inputs**0.5
            up = torch.randn(outputs, self.work.rank, generator=self._generator) * 0.02
            found |= {f"base_model.model.{path}.lora_{name}.weight": t for name, t in (("A", down), ("B", up))}
        return found


class Serving:
    """The ways to serve the same requests; each returns tokens, int64 of shape (requests, new_tokens).

    Parameters
    ----------
    world : World
    """

    def __init__(self, world: World) -> None:
        self._world, self._work = world, world.work
        self.experts, self.control = world.experts(world.adapters), world.control(EXPERTS)
        self.merged = [world.merged_model(soup) for soup in world.soups()]
        self.adapters = world.experts(world.soups())
        self._silent = ConstantSpec(1).build(PREFERENCES, 0, 0, torch.device("cpu"))
        self._rows = torch.arange(self._work.requests)

    def shared(self) -> Tensor:
        """Serve all at once by shared streams."""
        return self.streams(self._rows, self._sides())

    def alone(self) -> Tensor:
        """Serve the requests of each preference by themselves, by the same experts."""
        parts = torch.split(self._rows, self._work.each)
        return torch.cat([self.streams(rows, self._sides()[rows]) for rows in parts])

    def separate(self) -> Tensor:
        """Serve the requests of each preference by its merged model, one after another."""
        parts = zip(self.merged, torch.split(self._rows, self._work.each), strict=True)
        return torch.cat([self._plain(model, rows) for model, rows in parts])

    def batched(self) -> Tensor:
        """Serve all at once by merged adapters of one model."""
        own = nn.functional.one_hot(self._rows // self._work.each, PREFERENCES).float()
        return self._generate(Merger(self.adapters, self._silent, Linear()), self._rows, told_of(own, own))

    def streams(self, rows: Tensor, sides: Tensor) -> Tensor:
        """Serve some requests by the experts that they want, bool of shape (len(rows), n)."""
        wanted = sides.float()
        return self._generate(Merger(self.experts, self.control, Linear()), rows, told_of(wanted, 0 * wanted))

    def any_of(self, count: int) -> Tensor:
        """Serve all at once, each by the first experts alone, so many of them."""
        return self.streams(self._rows, (torch.arange(EXPERTS) < count).expand(len(self._rows), -1))

    def _sides(self) -> Tensor:
        each = nn.functional.one_hot(self._world.wanted, EXPERTS).sum(1).bool()
        return each.repeat_interleave(self._work.each, 0)

    def _generate(self, merger: Merger, rows: Tensor, told: Told) -> Tensor:
        ids = self._world.ids[rows]
        draws = self._world.draws[rows]
        longest = self._work.new_tokens
        return generate_merged(merger, told, ids, torch.ones_like(ids), longest, draws, full_length=True).tokens

    @torch.no_grad()
    def _plain(self, model: CausalModel, rows: Tensor) -> Tensor:
        """Continue prompts by one model, as lean as can be."""
        ids, draws, cache, tokens = self._world.ids[rows], self._world.draws[rows], None, []
        mask = torch.ones_like(ids)
        ended = torch.zeros(len(rows), dtype=torch.bool)
        ends = torch.tensor(model.end_tokens, dtype=torch.int64)
        for step in range(self._work.new_tokens):
            logits, cache = model.advance(ids, mask, cache, True, True)
            token = choose(logits[:, -1], 1.0, draws[:, step]).masked_fill(ended, model.pad_token)
            tokens.append(token)
            ended |= torch.isin(token, ends)
            ids, mask = token[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        return torch.stack(tokens, 1)


class Training:
    """Updates of a control model on texts that were drawn before.

    Parameters
    ----------
    world : World
    count : int
        Experts, all of which every text wants.
    """

    def __init__(self, world: World, count: int) -> None:
        work = world.work
        self._world, self._count, self._start = world, count, work.prompt_tokens
        self._ids = world.draw(work.batch, work.prompt_tokens + work.new_tokens)
        self._mask = torch.ones_like(self._ids)
        everyone = torch.ones(work.batch, count)
        self._told = told_of(everyone, 0 * everyone)
        self._control = world.control(count)
        self._optimizer = torch.optim.Adam(self._control.parameters(), lr=1e-9)
        self._spoken = Spoken(torch.rand(work.batch, work.new_tokens, count).log(), None, self._ids[:, self._start :])
        self._rewards = torch.rand(work.batch // 2, 2)
        # A first step makes the optimiser's moments.
        self.cached()

    def cached(self) -> None:
        """Take a step from what experts had found of the tokens, n numbers each."""
        self._step(self._spoken)

    def with_experts(self, experts: LoraExperts) -> None:
        """Ask the experts of the texts, and take a step."""
        pairs = Pairs.of(self._told.active)
        found, _ = experts.advance(pairs, self._ids, self._mask, None, keep_cache=False)
        shape = len(self._ids), self._count
        self._step(spoken_of(pairs, found[:, self._start - 1 : -1], self._ids[:, self._start :], shape, False))

    def _step(self, spoken: Spoken) -> None:
        scores, _, _ = self._control.advance(self._told, self._ids, self._mask, None, False)
        weights = log_weights(scores[:, self._start - 1 : -1], self._told)
        found = Linear().log_probability(weights, spoken).sum(1).view(-1, 2)
        loss = rebel_loss(found, found.detach(), self._rewards, 1.0).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def told_of(wanted: Tensor, fixed: Tensor) -> Told:
    """Return what a control model is told, from float tensors of shape (B, n)."""
    nothing = torch.zeros(len(wanted), 0, dtype=torch.int64)
    return Told(wanted, wanted > 0, torch.full((len(wanted),), -1), (nothing, nothing), fixed)


def time_serving(world: World, repeats: int) -> dict[str, Any]:
    """Return CPU seconds of the ways to serve, interleaved, their ratios to shared streams, and bytes of weights.

    Raises
    ------
    RuntimeError
        If ways that should write the same texts do not.
    """
    serving = Serving(world)
    written = serving.shared(), serving.alone(), serving.separate(), serving.batched()
    same = {"shared": _same(written[0], written[1]), "merged": _same(written[2], written[3])}
    for what, share in same.items():
        if share < SAME_ROWS:
            raise RuntimeError(f"{what}: in one batch only {share:.0%} of the texts are those of preferences alone")
    ways = {"shared": serving.shared, "separate": serving.separate, "batched": serving.batched}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(_seconds(way))
    base = tensor_bytes(world.base.network.parameters())
    adapter = tensor_bytes(world.adapters[0].values())
    return {
        "width": int(world.base.network.config.get_text_config().hidden_size),
        **{f"{name}_s": values for name, values in seconds.items()},
        "separate_ratio": _ratios(seconds["separate"], seconds["shared"]),
        "batched_ratio": _ratios(seconds["batched"], seconds["shared"]),
        "shared_bytes": base + EXPERTS * adapter + tensor_bytes(serving.control.parameters()),
        "separate_bytes": sum(tensor_bytes(model.network.parameters()) for model in serving.merged),
        "batched_bytes": base + PREFERENCES * adapter,
        "same_texts": same,
    }


def time_active(world: World, repeats: int) -> list[dict[str, Any]]:
    """Return CPU seconds of all requests at once and bytes at the peak, by how many experts each text has."""
    serving = Serving(world)
    found: list[dict[str, Any]] = [
        {"active": count, "seconds": [], "peak_bytes": peak_bytes(lambda: serving.any_of(count))}  # noqa: B023
        for count in range(1, EXPERTS + 1)
    ]
    for _ in range(repeats):
        for each in found:
            each["seconds"].append(_seconds(lambda: serving.any_of(each["active"])))  # noqa: B023
    return found


def training_memory(world: World) -> list[dict[str, Any]]:
    """Return bytes at the peak of an update, by number of experts: from cached numbers, and with experts in memory."""
    found = []
    for count in TRAINED:
        training = Training(world, count)
        cached = peak_bytes(training.cached)
        adapters = world.many(count)
        experts = world.experts(adapters)
        held = tensor_bytes(world.base.network.parameters()) + sum(tensor_bytes(a.values()) for a in adapters)
        asked = peak_bytes(lambda: training.with_experts(experts))  # noqa: B023
        found.append({"experts": count, "cached_bytes": cached, "asked_bytes": asked, "experts_bytes": held})
    return found


def peak_bytes(work: Callable[[], object]) -> int:
    """Return how many bytes a piece of work holds at most, above those held before; as PyTorch's allocator counts.

    The least of several times: what happens to be held besides, by work that was not cleared away yet, only adds.
    """
    work()
    return min(_peak_bytes(work) for _ in range(_COUNTED))


def _peak_bytes(work: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    results: Any = recorded.profiler
    changes = [(e.start_ns(), e.nbytes()) for e in results.kineto_results.events() if e.name() == "[memory]"]
    peak: int = max(itertools.accumulate((change for _, change in sorted(changes)), initial=0))
    return peak


def tensor_bytes(tensors: Any) -> int:
    """Return the bytes of tensors; what several share counts once."""
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def _same(one: Tensor, other: Tensor) -> float:
    return float((one == other).all(1).float().mean())


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of a piece of work in this process, which others on the machine hardly touch."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    return [value / own for value, own in zip(values, base, strict=True)]


def to_report(work: Work, repeats: int) -> dict[str, Any]:
    """Measure everything and return it as plain data.

    Raises
    ------
    UserError
        If the model cannot be had or adapted, or does not read that many tokens.
    RuntimeError
        If ways that should write the same texts do not.
    """
    torch.set_num_threads(work.threads)
    machine = environment(work.seed)
    with tempfile.TemporaryDirectory() as place:
        folders = [work.write_model(Path(place) / str(width), width) for width in work.widths]
        worlds = [World(work, folder) for folder in folders]
        return {
            "work": {**asdict(work), "model": None if work.model is None else Path(work.model).name},
            "machine": {key: machine[key] for key in ("machine", "cpu_count", "python", "versions")},
            "serving": [time_serving(world, repeats) for world in worlds],
            "active": time_active(worlds[0], repeats),
            "training": training_memory(worlds[0]),
        }


def to_tables(report: Mapping[str, Any]) -> list[str]:
    """Return medians over repeats as Markdown tables: ways to serve, active experts, memory of training."""
    requests = PREFERENCES * report["work"]["each"]
    ways = {
        "shared": f"{EXPERTS} shared expert streams, one batch",
        "separate": f"{PREFERENCES} merged models, one after another",
        "batched": f"{PREFERENCES} merged adapters of one model, one batch",
    }
    serving = [
        [way, f"{each['width']}", _ms(each[f"{name}_s"], requests), ratio, f"{each[f'{name}_bytes'] / 1e6:,.1f}"]
        for each in report["serving"]
        for name, way in ways.items()
        for ratio in ["1.00" if name == "shared" else f"{statistics.median(each[f'{name}_ratio']):.2f}"]
    ]
    one = report["active"][0]
    active = [
        [
            str(each["active"]),
            _ms(each["seconds"], requests),
            f"{statistics.median(_ratios(each['seconds'], one['seconds'])):.2f}",
            f"{each['peak_bytes'] / requests / 1e6:,.2f}",
        ]
        for each in report["active"]
    ]
    first = report["training"][0]
    training = [
        [
            str(each["experts"]),
            f"{each['cached_bytes'] / 1e6:,.2f}",
            f"{each['cached_bytes'] / first['cached_bytes']:.3f}",
            f"{each['asked_bytes'] / 1e6:,.1f}",
            f"{each['experts_bytes'] / 1e6:,.1f}",
        ]
        for each in report["training"]
    ]
    return [
        _table(["served by", "width", "CPU ms a request", "to shared streams", "weights, MB"], serving),
        _table(["experts of a text", "CPU ms a request", "to one", "peak MB a request"], active),
        _table(["experts", "update MB", "to two", "update with experts MB", "their weights MB"], training),
    ]


def _ms(seconds: Sequence[float], requests: int) -> str:
    return f"{1e3 * statistics.median(seconds) / requests:,.1f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *("---:" for _ in headers[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in (headers, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(ruler)}|", *lines[1:]]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its tables; 1 if two ways that should agree do not, 2 for a user's mistake."""
    given = _parse(arguments)
    widths = tuple(given.widths) if given.model is None else (0,)
    work = Work(
        *(given.model, given.layers, given.vocabulary, widths, tuple(given.target_modules), given.rank, given.each),
        *(given.prompt_tokens, given.new_tokens, given.batch, given.seed, given.threads),
    )
    try:
        report = to_report(work, given.repeats)
    except (UserError, RuntimeError) as error:
        print(f"benchmark_experts: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    tables = "\n".join(to_tables(report))
    print(tables, end="")
    if given.output is not None:
        write_json_atomic(given.output.with_suffix(".json"), report)
        write_text_atomic(given.output.with_suffix(".md"), tables)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark_experts", description="Compare shared expert streams with merged models, and training memory."
    )
    parser.add_argument("--model", help="Hub name or local folder of a causal model (default: random GPT-2s)")
    parser.add_argument("--layers", type=int, default=4, help="of a random GPT-2 (default 4)")
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 384], help="of random GPT-2s (default 192 384)")
    parser.add_argument("--vocabulary", type=int, default=4096, help="of a random GPT-2 (default 4096)")
    parser.add_argument("--target-modules", nargs="+", metavar="NAME", default=["c_attn"], help="(default c_attn)")
    parser.add_argument("--rank", type=int, default=8, help="of the experts' adapters (default 8)")
    parser.add_argument("--each", type=int, default=4, help="requests under each of 8 preferences (default 4)")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="texts of a training step, an even number (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="of each, interleaved (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="write every number, and the tables as FILE.md"
    )
    given = parser.parse_args(arguments)
    sizes = (given.layers, *given.widths, given.vocabulary, given.rank, given.each, given.prompt_tokens)
    if min(*sizes, given.new_tokens, given.repeats, given.threads) < 1 or given.batch < 2 or given.batch % 2:
        parser.error("--batch must be an even number of 2 or more, all other sizes 1 or more")
    if any(width > HEAD and width % HEAD for width in given.widths):
        parser.error(f"--widths must be multiples of {HEAD}")
    return given


if __name__ == "__main__":
    sys.exit(main())
