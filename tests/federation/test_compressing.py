"""Compression in a federation: one sum wherever it is unpacked, a residual that stays, and every guarantee kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fedalign.compression.layers import Layers
from fedalign.compression.number_formats import Cast, Int8
from fedalign.compression.sparsify import TopK
from fedalign.contribution import Contribution
from fedalign.errors import RunFailed
from fedalign.federation.compressing import compressed
from fedalign.federation.desk import TrainingDesk
from fedalign.federation.messages import INSTRUCTION, STATE, TRAIN, Instruction, NodeReport, Terms
from fedalign.federation.records import decode_contribution, encode_tensors
from fedalign.federation.site import load_memory
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.local import DPSGD
from fedalign.rng import Streams

from .guarded import CLIENTS, Guarded, Lossy, Pull, protection, vector_of
from .toy import node

INT8 = Layers(None, Int8("stochastic"), True)
SPARSE = Layers(TopK(0.25), Int8("stochastic"), True)
OPEN: dict[str, Any] = {"noise_multiplier": 0.0}
"""Clipped, without noise: what clients send can be seen in the sum."""


def world(folder: Path, compression: Layers = SPARSE, **more: Any) -> Guarded:
    return Guarded(folder, more.pop("privacy", protection(**OPEN)), compression=compression, **more)


@pytest.mark.parametrize("compression", [INT8, SPARSE, Layers(None, Cast("float16"), True)])
def test_single_replies_travel_compressed_and_add_up_to_the_sum_of_one_node(
    tmp_path: Path, compression: Layers
) -> None:
    seen: list[Lossy] = []

    def spied(grid: Any) -> Lossy:
        seen.append(Lossy(grid))
        return seen[-1]

    together = world(tmp_path / "together", compression).run()
    apart = world(tmp_path / "apart", compression, separate=True, wrap=spied).run()
    assert torch.equal(together.artefacts["pull"]["w"], apart.artefacts["pull"]["w"])
    assert together.counters["up_bytes"] == apart.counters["up_bytes"]
    replies = [reply for reply in seen[0].replies if "tensors" in getattr(reply.content, "array_records", {})]
    sent = [reply for reply in replies if reply.metadata.message_type == "train"]
    assert len(sent) == 3 * len(CLIENTS)
    for reply in sent:
        names = set(reply.content.array_records["tensors"])
        assert names and "delta/w" not in names
        travelled = sum(
            array.tensor.numel() * array.tensor.element_size()  # type: ignore[attr-defined]
            for array in reply.content.array_records["tensors"].values()
        )
        assert travelled == compression.tensor_bytes(8)
        # The weight and two numbers of a metric.
        assert NodeReport.of(reply.content).sent_bytes == travelled + 8 * 3


def test_the_residual_stays_on_the_node_and_is_made_up_for(tmp_path: Path) -> None:
    context, streams = node(1), Streams(5, "pull", 1, "a")
    told = Contribution({"delta/w": torch.tensor([4.0, 3.0, 2.0, 1.0])})
    keep_one = Layers(TopK(0.25), None, True)
    sums = torch.zeros(4)
    for _ in range(4):
        sent = compressed(told, keep_one, context, streams, 0.0)
        sums += sent.tensors["delta/w"]
    kept = load_memory(context, "residual:pull", "a")
    torch.testing.assert_close(sums + kept["delta/w"], 4 * told.tensors["delta/w"])
    assert sums.count_nonzero() > 1
    assert set(context.state.array_records) == {"memory/residual:pull/a"}
    assert load_memory(context, "residual:pull", "b") == {}


def test_a_client_that_fails_keeps_the_residual_that_it_had(tmp_path: Path) -> None:
    context, streams = node(1), Streams(5, "pull", 1, "a")
    compressed(Contribution({"delta/w": torch.tensor([1.0, 0.6])}), SPARSE, context, streams, 0.0)
    before = load_memory(context, "residual:pull", "a")
    with pytest.raises(ValueError, match="NaN"):
        compressed(Contribution({"delta/w": torch.tensor([1.0, np.nan])}), SPARSE, context, streams, 0.0)
    assert torch.equal(load_memory(context, "residual:pull", "a")["delta/w"], before["delta/w"])


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_run_that_goes_on_has_its_residuals(tmp_path: Path, killed_after: int) -> None:
    straight = world(tmp_path / "straight").run()
    phases = [Pull(rounds=killed_after)]
    world(tmp_path / "halted", phases=phases).run()
    resumed = world(tmp_path / "halted").run(resume=True)
    assert torch.equal(straight.artefacts["pull"]["w"], resumed.artefacts["pull"]["w"])
    without = world(tmp_path / "without", Layers(SPARSE.topk, SPARSE.number, False)).run()
    assert not torch.equal(straight.artefacts["pull"]["w"], without.artefacts["pull"]["w"])


@pytest.mark.parametrize("compression", [INT8, SPARSE, Layers(None, Cast("bfloat16"), True)])
@pytest.mark.parametrize("bound", [0.01, 0.5, 2.9])
def test_no_reply_is_longer_than_its_bound_however_much_is_made_up_for(
    tmp_path: Path, compression: Layers, bound: float
) -> None:
    norms: list[float] = []

    class Measured(Lossy):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            for reply in super().send_and_receive(messages, timeout=timeout):
                if reply.metadata.message_type == "train":
                    norms.append(decode_contribution(reply.content).norm())
                yield reply

    privacy = protection(**OPEN, clip=ClientLevel(bound, {}, {}, 1.0, None))
    guarded = world(tmp_path, compression, privacy=privacy, separate=True, wrap=Measured, phases=[Pull(rounds=6)])
    guarded.run()
    assert len(norms) == 6 * len(CLIENTS)
    assert max(norms) <= bound * (1 + 1e-6)
    assert max(norms) > bound * 0.3
    assert not any(report.failed for report in guarded.listener.rounds)


def test_the_server_refuses_a_compressed_reply_that_is_too_long(tmp_path: Path) -> None:
    class Stretched(Lossy):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            for reply in super().send_and_receive(messages, timeout=timeout):
                yield stretched(reply)

    def stretched(reply: Message) -> Message:
        arrays = reply.content.array_records.get("tensors", {})
        if reply.metadata.message_type == "train":
            scale = arrays["packed.scale:delta/w"].tensor  # type: ignore[union-attr]
            scale.mul_(1000)
        return reply

    with pytest.raises(RunFailed, match=r"a sum of norm .* over 1 clients, each bounded by 1"):
        world(tmp_path, INT8, separate=True, wrap=Stretched).run()


def test_what_clients_have_made_noisy_is_compressed_as_it_is(tmp_path: Path) -> None:
    local = DPSGD("user", 1.0, 0.5, "loop")
    guarded = world(tmp_path, privacy=protection(clip=None, mechanism=None, local=local, delta=1e-5))
    grid = guarded.grid()
    order, state = Instruction("{}", 0, 1, CLIENTS, Terms()), {"w": torch.zeros(8, dtype=torch.float64)}
    content = RecordDict({STATE: encode_tensors(state), INSTRUCTION: order.to_record()})
    desk = TrainingDesk(guarded.site("{}", {}), order, grid.create_message(content, TRAIN, 1, "1"), grid.contexts[1])
    sent = desk.finish("a", desk.work("a"))
    noisy = {"delta/w": vector_of("a", 8).float()}
    expected, kept = SPARSE.compress(Contribution(noisy), {}, Streams(5, "pull", 1, "a").torch("compression"), 0.0)
    torch.testing.assert_close(sent.tensors["delta/w"], expected.tensors["delta/w"])
    assert sent.scalars["weight"] == 1.0
    residual = load_memory(grid.contexts[1], "residual:pull", "a")["delta/w"]
    torch.testing.assert_close(residual, kept["delta/w"])
    torch.testing.assert_close(residual + sent.tensors["delta/w"], noisy["delta/w"])


def test_noise_comes_on_top_of_what_was_compressed(tmp_path: Path) -> None:
    quiet = world(tmp_path / "quiet", phases=[Pull(rounds=1)]).run()
    noisy = world(tmp_path / "noisy", privacy=protection(), phases=[Pull(rounds=1)]).run()
    noise = (noisy.artefacts["pull"]["w"] - quiet.artefacts["pull"]["w"]) * len(CLIENTS)
    expected = Guarded(tmp_path / "plain", protection(), [Pull(rounds=1)]).run().artefacts["pull"]["w"]
    silent = Guarded(tmp_path / "silent", protection(**OPEN), [Pull(rounds=1)]).run().artefacts["pull"]["w"]
    # Noise ends on a grid, which hides what rounding would tell.
    torch.testing.assert_close(noise, (expected - silent) * len(CLIENTS), atol=1e-4, rtol=0)
