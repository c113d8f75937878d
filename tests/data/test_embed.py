"""Texts are encoded once, whoever asks; the cache survives other processes and damage; shards are laid out right."""

from __future__ import annotations

import contextlib
import logging
import mmap
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import fedalign.data.embed as embed_module
from fedalign.data.embed import EmbeddingCache, build_shard, default_cache_directory, embed
from fedalign.data.schema import ClientAnswers, Encoder, Question, Role, Survey

QUESTIONS = [Question("Tea?", ("yes", "no")), Question("Colour?", ("red", "green", "blue"))]


@dataclass
class Counting(Encoder):
    """Lengths and sums of characters; remembers what it was asked to encode."""

    name: str = "counting"
    asked: list[str] = field(default_factory=list)

    @property
    def dim(self) -> int:
        return 2

    @property
    def fingerprint(self) -> str:
        return self.name

    def texts(self, question: Question) -> list[str]:
        return [f"{question.text} {option}" for option in question.options]

    def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
        self.asked.extend(texts)
        progress(len(texts))
        return np.array([[len(text), sum(map(ord, text))] for text in texts], dtype=np.float32).reshape(-1, 2)


def expected(question: Question) -> torch.Tensor:
    texts = Counting().texts(question)
    return torch.tensor([[len(text), sum(map(ord, text))] for text in texts], dtype=torch.float32)


def check(vectors: dict[str, torch.Tensor], questions: Sequence[Question] = QUESTIONS) -> None:
    assert list(vectors) == [question.id for question in questions]
    for question in questions:
        assert vectors[question.id].dtype == torch.float32
        torch.testing.assert_close(vectors[question.id], expected(question), rtol=0, atol=0)


def test_every_option_has_its_vector_without_a_cache() -> None:
    check(embed(QUESTIONS, Counting(), None))


def test_the_second_time_nothing_is_encoded(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    check(embed(QUESTIONS, first, EmbeddingCache(tmp_path / "cache")))
    check(embed(QUESTIONS, second, EmbeddingCache(tmp_path / "cache")))
    assert len(first.asked) == 5
    assert second.asked == []


def test_only_what_is_missing_is_encoded(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    embed(QUESTIONS[:1], Counting(), cache)
    encoder = Counting()
    check(embed(QUESTIONS, encoder, cache))
    assert encoder.asked == ["Colour? red", "Colour? green", "Colour? blue"]
    check(embed(QUESTIONS, Counting(), cache))


def test_the_same_text_is_encoded_once() -> None:
    encoder = Counting()
    embed([*QUESTIONS, QUESTIONS[0]], encoder, None)
    assert len(encoder.asked) == 5


def test_another_fingerprint_shares_nothing(tmp_path: Path) -> None:
    cache, other = EmbeddingCache(tmp_path), Counting(name="other")
    embed(QUESTIONS, Counting(), cache)
    embed(QUESTIONS, other, cache)
    assert len(other.asked) == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "garbage"])
def test_a_damaged_file_is_encoded_again_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache = EmbeddingCache(tmp_path)
    embed(QUESTIONS, Counting(), cache)
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    path.write_bytes({"cut": content[:-5], "empty": b"", "flipped": flipped, "garbage": b"x" * 400}[damage])
    encoder = Counting()
    with caplog.at_level(logging.WARNING):
        check(embed(QUESTIONS, encoder, cache))
    assert len(encoder.asked) == 5
    assert "not readable, its texts are encoded again" in caplog.text
    again = Counting()
    check(embed(QUESTIONS, again, cache))
    assert again.asked == []


def test_long_lists_are_stored_in_parts_as_they_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_module, "_TEXTS_PER_FILE", 2)

    class Dying(Counting):
        def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
            if len(self.asked) >= 4:
                raise KeyboardInterrupt
            return super().encode(texts, progress)

    with pytest.raises(KeyboardInterrupt):
        embed(QUESTIONS, Dying(), EmbeddingCache(tmp_path))
    encoder = Counting()
    check(embed(QUESTIONS, encoder, EmbeddingCache(tmp_path)))
    assert encoder.asked == ["Colour? blue"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        EmbeddingCache(tmp_path).write("f", {"text": np.zeros(2, dtype=np.float32)})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def _embed_many(directory: Path, offset: int) -> None:
    for i in range(20):
        embed([Question(f"Q{i + offset}?", ("a", "b"))], Counting(), EmbeddingCache(directory))


def test_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    workers = [context.Process(target=_embed_many, args=(tmp_path, 10 * w)) for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    encoder = Counting()
    questions = [Question(f"Q{i}?", ("a", "b")) for i in range(40)]
    check(embed(questions, encoder, EmbeddingCache(tmp_path)), questions)
    assert encoder.asked == []


def test_progress_counts_what_is_left_to_encode(tmp_path: Path) -> None:
    shown: list[tuple[str, int]] = []
    done: list[int] = []

    @contextlib.contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        shown.append((description, total))
        yield done.append

    embed(QUESTIONS[:1], Counting(), EmbeddingCache(tmp_path), progress)
    embed(QUESTIONS, Counting(), EmbeddingCache(tmp_path), progress)
    embed(QUESTIONS, Counting(), EmbeddingCache(tmp_path), progress)
    assert [total for _, total in shown] == [2, 3]
    assert sum(done) == 5


def test_the_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDALIGN_CACHE", str(tmp_path))
    assert default_cache_directory() == tmp_path / "embeddings"
    monkeypatch.delenv("FEDALIGN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_directory() == tmp_path / ".cache" / "fedalign" / "embeddings"


def test_a_shard_lays_out_points_question_by_question(survey: Survey) -> None:
    vectors = embed(survey.questions.values(), Counting(), None)
    own = {group: survey.answers[group] for group in ("land 0", "land 2")}
    held_out = frozenset(list(own["land 0"])[3:6])
    client = ClientAnswers("mixed", Role.TRAIN, own, {"land 0": held_out, "land 2": frozenset()})
    shard = build_shard(client, vectors)
    assert (shard.client, shard.role, [group.group for group in shard.groups]) == (
        "mixed",
        Role.TRAIN,
        ["land 0", "land 2"],
    )
    for group in shard.groups:
        assert group.question_ids == tuple(own[group.group])
        assert group.features.dtype == group.shares.dtype == torch.float32
        assert group.offsets.dtype == group.train.dtype == group.test.dtype == torch.int64
        assert len(group.shares) == len(group.features) == int(group.offsets[-1])
        for q, question in enumerate(group.question_ids):
            points = slice(int(group.offsets[q]), int(group.offsets[q + 1]))
            np.testing.assert_allclose(group.shares[points], own[group.group][question], rtol=1e-6)
            torch.testing.assert_close(group.features[points], expected(survey.questions[question]))
    assert shard.groups[0].test.tolist() == [3, 4, 5]
    assert shard.groups[0].train.tolist() == [0, 1, 2, *range(6, 30)]
    assert shard.groups[1].test.tolist() == []


def test_an_unseen_client_has_all_its_questions_as_context(survey: Survey) -> None:
    own = {"land 1": survey.answers["land 1"]}
    client = ClientAnswers("land 1", Role.UNSEEN, own, {"land 1": frozenset()})
    (group,) = build_shard(client, embed(survey.questions.values(), Counting(), None)).groups
    assert group.train.tolist() == list(range(32))
    assert group.test.tolist() == []


def is_mapped(array: object) -> bool:
    """Tell whether an array's numbers are in a file that is mapped into memory."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def test_vectors_of_a_cache_are_mapped_and_made_when_asked_for(tmp_path: Path) -> None:
    """The first process to encode holds as little as those after it."""
    for _ in range(2):
        vectors = embed(QUESTIONS, Counting(), EmbeddingCache(tmp_path))
        rows = [row for own in vectors._options.values() for row in own]  # type: ignore[attr-defined]
        assert all(is_mapped(row) and not row.flags.writeable for row in rows)
        first = vectors[QUESTIONS[0].id]
        first.zero_()  # a copy: the next who asks is not affected
        check(vectors)
