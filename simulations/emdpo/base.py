"""The base model of the language experiment: it has read the world's public texts, and nobody's preferences."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.config import parse, resolve
from fedalign.data.rankings import RankingSource
from fedalign.rng import Streams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORLD = (
    "method=emdpo",
    "data.train_judgments=20",
    "data.test_judgments=1",
    "data.responses=2",
    "data.form=pair",
    "data.probe_menus=0",
    "data.world_seed=9999",
)
"""Of no run."""
EPOCHS = 6
_BATCH, _LR = 32, 1e-3
_LAST = "tokenizer_config.json"

Text = tuple[str, str]
"""A prompt and a response."""


def made(folder: Path) -> bool:
    """Return whether the base model is there, and complete."""
    return (folder / _LAST).is_file()


def public_texts() -> list[Text]:
    """Return prompts and both responses of a world of its own, whichever was preferred."""
    config = parse(resolve([*_WORLD]))
    assert isinstance(config.data, RankingSource)
    judged = config.data.load(Streams(0)).rankings
    return list(dict.fromkeys((ranking.prompt, text) for ranking in judged for text in ranking.responses))


def make(source: str, folder: Path, texts: Sequence[Text] | None = None) -> None:
    """Fine-tune all of a small causal model on public texts and write it to a folder.

    Parameters
    ----------
    source : str
        Hub name or folder of the model.
    folder : Path
    texts : sequence of Text, optional
        By default those of this experiment's world.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    # Without dropout: a loaded model is in evaluation mode.
    model = AutoModelForCausalLM.from_pretrained(source)
    with one_thread():
        _fit(model, tokenizer, public_texts() if texts is None else texts)
    model.save_pretrained(os.fspath(folder))
    tokenizer.save_pretrained(os.fspath(folder))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Give PyTorch one thread, as runs have, and afterwards what it had: sums differ with their number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> None:
    """Take steps of AdamW through all texts, epoch by epoch, in an order that is always the same."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        order = torch.randperm(len(texts), generator=generator).tolist()
        for start in range(0, len(order), _BATCH):
            ids, labels, mask = batch(tokenizer, [texts[i] for i in order[start : start + _BATCH]])
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def batch(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, labels and attention mask, int64 of shape (B, T), padded on the right.

    Labels are the response's tokens and the one that ends it; -100 elsewhere.
    """
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    rows = []
    for prompt, response in texts:
        before, after = tokenizer(prompt)["input_ids"], [*tokenizer(response)["input_ids"], end]
        rows.append(([*before, *after], [-100] * len(before) + after))
    shape = (len(rows), max(len(ids) for ids, _ in rows))
    ids, labels, mask = torch.full(shape, end), torch.full(shape, -100), torch.zeros(shape, dtype=torch.int64)
    for row, (own, told) in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
        labels[row, : len(own)] = torch.tensor(told)
        mask[row, : len(own)] = 1
    return ids, labels, mask
