"""Questions to vectors, computed once: an on-disk cache of encoded texts, and clients' shards built from it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch

from fedalign.data.progress import ProgressFactory, silent
from fedalign.data.schema import ClientAnswers, Encoder, GroupJudgments, Question, Role, SurveyShard

_Vectors = npt.NDArray[np.float32]

_TEXTS_PER_FILE = 16384  # an interrupted encoding loses at most this many texts; a model is loaded once for each


def default_cache_directory() -> Path:
    """Return ``$FEDALIGN_CACHE``, or ``~/.cache/fedalign``, with ``embeddings`` below it."""
    root = os.environ.get("FEDALIGN_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "fedalign") / "embeddings"


@dataclass(frozen=True)
class EmbeddingCache:
    """Encoded texts on disk: one folder an encoder, safetensors files named by their content.

    A file appears by an atomic rename and is never changed, so processes may read and write at once, and what is read
    is mapped into memory: vectors take room there when they are looked at, and the system may take it back.
    A file that cannot be read is skipped with a warning and its texts are encoded again.

    Parameters
    ----------
    directory : Path
        Made when first written to.
    """

    directory: Path

    def read(self, fingerprint: str, texts: Iterable[str]) -> dict[str, _Vectors]:
        """Return the vectors, shape (dim,), of those of ``texts`` that are stored."""
        missing = {_key(text): text for text in texts}
        found: dict[str, _Vectors] = {}
        for path in sorted(self._folder(fingerprint).glob("*.safetensors")):
            if not missing:
                break
            stored = _read_file(path)
            for key in stored.keys() & missing.keys():
                found[missing.pop(key)] = stored[key]
        return found

    def write(self, fingerprint: str, vectors: Mapping[str, _Vectors]) -> None:
        """Store the vectors, shape (dim,) each, of some texts."""
        keys = sorted((_key(text), text) for text in vectors)
        matrix = np.stack([vectors[text] for _, text in keys])
        names = np.array([list(bytes.fromhex(key)) for key, _ in keys], dtype=np.uint8)
        tensors: dict[str, npt.NDArray[Any]] = {"keys": names, "vectors": matrix}
        content = safetensors.numpy.save(tensors, metadata={"checksum": _checksum(names, matrix)})
        folder = self._folder(fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.blake2b("".join(key for key, _ in keys).encode(), digest_size=16).hexdigest()
        _write_atomically(folder / f"{name}.safetensors", content)

    def _folder(self, fingerprint: str) -> Path:
        return self.directory / hashlib.blake2b(fingerprint.encode(), digest_size=16).hexdigest()


def embed(
    questions: Iterable[Question],
    encoder: Encoder,
    cache: EmbeddingCache | None,
    progress: ProgressFactory = silent,
) -> Mapping[str, torch.Tensor]:
    """Encode every (question, option) pair, taking from the cache what is there.

    Parameters
    ----------
    questions : iterable of Question
    encoder : Encoder
    cache : EmbeddingCache or None
        None neither reads nor writes.
    progress : ProgressFactory
        Shows how many texts are left to encode; not called if there are none.

    Returns
    -------
    mapping from question id to float32 tensor, shape (options, dim)
        A tensor is made whenever it is asked for.
    """
    texts = {question.id: encoder.texts(question) for question in questions}
    wanted = list(dict.fromkeys(text for own in texts.values() for text in own))
    fingerprint = encoder.fingerprint
    vectors = {} if cache is None else cache.read(fingerprint, wanted)
    missing = [text for text in wanted if text not in vectors]
    if missing:
        with progress("encoding", len(missing)) as advance:
            for start in range(0, len(missing), _TEXTS_PER_FILE):
                chunk = missing[start : start + _TEXTS_PER_FILE]
                fresh = dict(zip(chunk, encoder.encode(chunk, advance), strict=True))
                vectors.update(fresh)
                if cache is not None:
                    cache.write(fingerprint, fresh)
                    # From the file, so that what was encoded just now takes no more room than what was before.
                    vectors.update(cache.read(fingerprint, chunk))
    # Without the texts themselves: nobody asks for them, and they are as large as the data.
    return Encoded({question: [vectors[text] for text in own] for question, own in texts.items()})


class Encoded(Mapping[str, torch.Tensor]):
    """Encoded questions: their options' vectors, stacked when they are asked for.

    Parameters
    ----------
    options : mapping from question id to sequence of float32 array, shape (dim,)
        Vectors of each question's options.
    """

    def __init__(self, options: Mapping[str, Sequence[_Vectors]]) -> None:
        self._options = options

    def __getitem__(self, question: str) -> torch.Tensor:
        """Return the vectors of a question's options, shape (options, dim)."""
        return torch.from_numpy(np.stack(self._options[question]))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the questions' ids."""
        return iter(self._options)

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self._options)


def build_shard(client: ClientAnswers, vectors: Mapping[str, torch.Tensor]) -> SurveyShard:
    """Join a client's answers with the encoded questions.

    Parameters
    ----------
    client : ClientAnswers
    vectors : mapping from question id to float32 tensor, shape (options, dim)
        What ``embed`` returns; must cover the client's questions.

    Returns
    -------
    SurveyShard
        Groups and questions in the client's order.
    """
    groups = tuple(_judgments(group, client, vectors) for group in client.answers)
    return SurveyShard(client=client.name, role=client.role, groups=groups)


def _judgments(group: str, client: ClientAnswers, vectors: Mapping[str, torch.Tensor]) -> GroupJudgments:
    answers = client.answers[group]
    held_out = client.test.get(group, frozenset()) if client.role is Role.TRAIN else frozenset()
    ids = tuple(answers)
    sizes = [len(answers[question]) for question in ids]
    return GroupJudgments(
        group=group,
        question_ids=ids,
        offsets=torch.tensor([0, *np.cumsum(sizes).tolist()], dtype=torch.int64),
        features=torch.cat([vectors[question] for question in ids]),
        shares=torch.from_numpy(np.concatenate([answers[question] for question in ids])).float(),
        train=_indices([question not in held_out for question in ids]),
        test=_indices([question in held_out for question in ids]),
    )


def _indices(chosen: Sequence[bool]) -> torch.Tensor:
    return torch.tensor([i for i, yes in enumerate(chosen) if yes], dtype=torch.int64)


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _checksum(names: npt.NDArray[np.uint8], matrix: _Vectors) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(names).data)
    digest.update(np.ascontiguousarray(matrix).data)
    return digest.hexdigest()


def _read_file(path: Path) -> dict[str, _Vectors]:
    """Return a file's vectors by key; rows of a map of the file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            names, checksum = stored.get_tensor("keys"), stored.metadata()["checksum"]
        matrix = _mapped(path, "vectors")
        intact = checksum == _checksum(names, matrix)
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        intact = False
    if not intact:
        logging.getLogger(__name__).warning("%s: not readable, its texts are encoded again", path)
        return {}
    return {bytes(name).hex(): vector for name, vector in zip(names, matrix, strict=True)}


def _mapped(path: Path, name: str) -> _Vectors:
    """Return a float32 tensor of a safetensors file that was opened before, as a map of the file: read-only."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        about = json.loads(file.read(length))[name]
    start, stop = about["data_offsets"]
    if about["dtype"] != "F32" or not stop > start:
        raise ValueError(f"{name} holds no numbers of float32")
    shape = tuple(about["shape"])
    # As a plain array, whose rows are smaller objects than a map's own.
    return np.memmap(path, dtype="<f4", mode="r", offset=8 + length + start, shape=shape).view(np.ndarray)


def _write_atomically(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
