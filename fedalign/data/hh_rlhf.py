"""HH-RLHF: people's choices between two of an assistant's answers, for being helpful and for being harmless.

Bai et al. 2022, "Training a helpful and harmless assistant with reinforcement learning from human feedback".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedalign.data.names import suggest
from fedalign.data.pair_rows import PairRow, clean_pairs
from fedalign.data.pairs import PairSet, PairSource, Split
from fedalign.data.pairs_file import parse_split
from fedalign.data.table import read_table
from fedalign.errors import UserError
from fedalign.hub import dataset_file
from fedalign.rng import Streams

HUB_NAME = "Anthropic/hh-rlhf"
SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
"""The published folders with pairs; a judgment's group is the one that it is in."""

_SPLITS: tuple[Split, ...] = ("train", "test")
_SUFFIXES = (".jsonl.gz", ".jsonl")
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@dataclass(frozen=True)
class HHRLHF(PairSource):
    """HH-RLHF from the hub, or from a local copy in one of two forms.

    The published form has a folder for each subset with ``train.jsonl.gz`` and ``test.jsonl.gz``, whose ``chosen`` and
    ``rejected`` are whole dialogues; they are split at the assistant's last turn. The other form is one file whose rows
    have a ``subset``, and perhaps a ``prompt`` and the two responses alone. Counted beside what ``clean_pairs`` drops:

    ======================== ==========================================================================
    count                    what was dropped
    ======================== ==========================================================================
    last_turn_not_assistants dialogues in which the human speaks last, or the assistant never does
    prompts_differ           pairs of dialogues that differ before the assistant's last turn
    ======================== ==========================================================================

    Parameters
    ----------
    name : str
    path : str or None
        None takes the published files from the hub (or its cache); a folder with published files, or one file.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    subsets : tuple of str
        Which subsets to read, in this order; each is a group.
    test_fraction : float
        Share of the prompts whose judgments are held out (by a hash of the prompt), in a file that has no split.
        Published files keep the published split.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    subsets: Annotated[tuple[str, ...], Field(min_length=1)]
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]

    def load(self, streams: Streams) -> PairSet:
        """Read, check and clean the pairs; draws nothing from ``streams``.

        Raises
        ------
        UserError
            If a file is missing or malformed, the hub is out of reach, or a subset is not there.
        """
        counts: Counter[str] = Counter()
        path = None if self.path is None else Path(self.path)
        rows = self._one_file(path, counts) if path is not None and not path.is_dir() else self._published(path, counts)
        return clean_pairs(rows, self.test_fraction, "keep", counts)

    def _published(self, folder: Path | None, counts: Counter[str]) -> Iterator[PairRow]:
        """Yield the pairs of the published layout, under ``folder`` or from the hub."""
        for subset in self.subsets:
            if folder is None and subset not in SUBSETS:
                raise UserError(f"data.subsets: no subset {subset!r} in {HUB_NAME}{suggest(subset, SUBSETS)}")
            for split in _SPLITS:
                file = f"{subset}/{split}.jsonl.gz"
                path = dataset_file(HUB_NAME, file) if folder is None else _local_file(folder, subset, split)
                for where, record in read_table(path, ("chosen", "rejected")):
                    yield from _row(record, where, subset, split, counts)

    def _one_file(self, path: Path, counts: Counter[str]) -> Iterator[PairRow]:
        """Yield the pairs of one file that are in one of the subsets."""
        found: set[str] = set()
        for where, record in read_table(path, ("chosen", "rejected", "subset")):
            subset = _text(record, "subset", where)
            found.add(subset)
            if subset in self.subsets:
                yield from _row(record, where, subset, parse_split(record.get("split"), where), counts)
        for name in self.subsets:
            if name not in found:
                raise UserError(f"data.subsets: no subset {name!r} in {path}{suggest(name, sorted(found))}")


def split_dialogue(dialogue: str) -> tuple[str, str] | None:
    """Return a dialogue up to the assistant's last turn, and that turn; None if the assistant does not speak last.

    The first ends with ``"Assistant:"``; white space around both is removed.
    """
    before, turn, response = dialogue.rpartition(_ASSISTANT)
    if not turn or _HUMAN in response:
        return None
    return (before + turn).strip(), response.strip()


def _row(
    record: Mapping[str, object], where: str, subset: str, split: Split | None, counts: Counter[str]
) -> Iterator[PairRow]:
    """Yield the pair of one record, or count why there is none."""
    chosen, rejected = _text(record, "chosen", where), _text(record, "rejected", where)
    if "prompt" in record:
        yield PairRow(_text(record, "prompt", where), chosen, rejected, subset, split=split)
        return
    better, worse = split_dialogue(chosen), split_dialogue(rejected)
    if better is None or worse is None:
        counts["last_turn_not_assistants"] += 1
    elif better[0] != worse[0]:
        counts["prompts_differ"] += 1
    else:
        yield PairRow(better[0], better[1], worse[1], subset, split=split)


def _local_file(folder: Path, subset: str, split: Split) -> Path:
    candidates = [folder / subset / f"{split}{suffix}" for suffix in _SUFFIXES]
    present = [path for path in candidates if path.is_file()]
    if present:
        return present[0]
    if not (folder / subset).is_dir():
        known = sorted(entry.name for entry in folder.iterdir())
        raise UserError(f"data.path={folder}: no folder {subset!r}{suggest(subset, known)}")
    raise UserError(f"data.path={folder}: no {subset}/{split}.jsonl.gz; fetch the published files again")


def _text(record: Mapping[str, object], column: str, where: str) -> str:
    value = record[column]
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} holds {str(value)[:40]!r}; it must be a text")
    return value
