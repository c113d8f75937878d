"""A language model as work for engines: DPO of one adapter by clients that rank texts, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedalign.errors import UserError
from fedalign.federation.observer import Observer
from fedalign.models.language_model import LanguageModelSpec
from fedalign.pretrained import Dtype
from scripts.benchmark_task import Federation, configured

PHASE = "em"


@dataclass(frozen=True)
class Texts:
    """One adapter, trained by DPO; every client takes some steps of Adam on pairs of its own in every round.

    Parameters
    ----------
    model : str
        Folder of a causal model with a tokenizer.
    device : str
    dtype : "float32", "bfloat16" or "float16"
    clients, steps, batch, rounds, seed, threads : int
    """

    model: str
    device: str
    dtype: Dtype
    clients: int = 8
    steps: int = 4
    batch: int = 16
    rounds: int = 4
    seed: int = 0
    threads: int = 1

    @property
    def updates(self) -> int:
        """Client-updates of a round."""
        return self.clients

    def overrides(self) -> list[str]:
        """Return the configuration."""
        never = self.rounds + 1
        return [
            *("method=dpo", "method/fair=none", f"method.batch={self.batch}", "method.local.optimizer=adam"),
            *("method.lengths.prompt=24", "method.lengths.response=40", f"method.local.steps={self.steps}"),
            *("method.evaluation.judgments=1", "method.evaluation.known=1"),
            *("data.form=pair", "data.responses=2", f"data.annotators={self.clients}", "data.train_judgments=64"),
            *("data.test_judgments=1", f"seed={self.seed}", "model=gpt2_lora", f"model.model={self.model}"),
            *(f"model.device={self.device}", f"model.dtype={self.dtype}", "model.rank=8", "federation=fedavg"),
            *("federation/sampler=fixed", f"federation.sampler.size={self.clients}"),
            *(f"federation.rounds={self.rounds}", f"federation.evaluate_every={never}"),
            f"federation.checkpoint_every={never}",
        ]

    def federation(self, engine: Sequence[str], place: Path, observers: Sequence[Observer]) -> Federation:
        """Return what an engine runs."""
        return configured([*self.overrides(), *engine, f"engine.threads={self.threads}"], place, observers, PHASE)


def enlarged(model: str, width: int, layers: int, place: Path) -> str:
    """Write a GPT-2 of another size with random weights and the tokenizer of ``model``; return its folder.

    Speed depends on the size and not on what the weights say, and a large model need not be at hand.

    Raises
    ------
    UserError
        If there is no such GPT-2.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2LMHeadModel

    LanguageModelSpec(model, 1, 1.0, 0.0, None, False, "float32", "cpu").build("--model")
    if width < 64 or width % 64 or layers < 1:
        raise UserError(f"--size {width} {layers}: the width must be a multiple of 64, and there must be a layer")
    found = AutoConfig.from_pretrained(model, local_files_only=True)
    if not isinstance(found, GPT2Config):
        raise UserError(f"--size: --model {model} is a {found.model_type}, no GPT-2; leave --size out")
    config = GPT2Config(**{**found.to_diff_dict(), "n_embd": width, "n_layer": layers, "n_head": width // 64})
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(model, local_files_only=True).save_pretrained(place)
    return str(place)
