"""Texts as read, one by one, become a corpus: unusable records are dropped and counted, and every text has a user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedalign.data.corpus import Corpus, Example, Split
from fedalign.data.pair_rows import split_of
from fedalign.errors import UserError
from fedalign.rng import Streams

GROUP = "all"
"""Group of texts that belong to none."""


@dataclass(frozen=True)
class CorpusRow:
    """One record as read; fields as in ``Example``, but texts may be empty or the same.

    Parameters
    ----------
    prompt, response : str
    rejected : str or None
    group : str
    user : str or None
        None where the data do not say.
    split : {"train", "test"} or None
        None where the data do not say.
    """

    prompt: str
    response: str
    rejected: str | None
    group: str = GROUP
    user: str | None = None
    split: Split | None = None


def corpus_of(
    rows: Iterable[CorpusRow],
    test_fraction: float,
    per_user: int,
    streams: Streams,
    dropped: Mapping[str, int] | None = None,
) -> Corpus:
    """Drop what cannot be used, count it, keep the splits apart and give every record a user.

    ================ ======================================================================================
    count            what was dropped
    ================ ======================================================================================
    response_empty   records one of whose responses holds no text
    responses_equal  comparisons of two responses that are the same, but for white space
    example_repeated the same record of the same user (or of nobody known), after the first
    in_test          training records with a text, prompt and response together, that a test record has too
    ================ ======================================================================================

    A response that would run into the last word of its prompt gets a space before it, so that prompt and response
    together are the text.

    Parameters
    ----------
    rows : iterable of CorpusRow
        In file order.
    test_fraction : float
        Share of the prompts (of the responses, where there is no prompt) that are held out, for rows without a split.
    per_user : int
        How many records an invented user has; used where no record says whose it is.
    streams : Streams
        Deals records to invented users.
    dropped : mapping from rule to count, optional
        What the reader itself has dropped; complete only when ``rows`` has ended.

    Returns
    -------
    Corpus

    Raises
    ------
    UserError
        If no training record is left, or only some records say whose they are.
    """
    counts: Counter[str] = Counter()
    kept = list(_usable(rows, test_fraction, counts))
    held_out = {text for row in kept if row.split == "test" for text in _texts(row)}
    apart = [row for row in kept if row.split == "test" or not held_out.intersection(_texts(row))]
    counts["in_test"] = len(kept) - len(apart)
    counts.update(dropped or {})
    if all(row.split == "test" for row in apart):
        removed = dict(+counts) or "nothing, the input is empty"
        raise UserError(f"data: no usable text is left to train on; removed so far: {removed}")
    examples = [_example(row) for row in _with_users(apart, per_user, streams)]
    return Corpus(examples, dict(+counts))


def _usable(rows: Iterable[CorpusRow], test_fraction: float, counts: Counter[str]) -> Iterator[CorpusRow]:
    """Yield the rows that can be used, each with its split."""
    seen: set[CorpusRow] = set()
    for row in rows:
        reason = _reason_to_drop(row) or ("example_repeated" if row in seen else None)
        if reason is not None:
            counts[reason] += 1
            continue
        seen.add(row)
        rejected = None if row.rejected is None else continuing(row.prompt, row.rejected)
        yield replace(
            row,
            response=continuing(row.prompt, row.response),
            rejected=rejected,
            split=row.split or split_of(row.prompt if row.prompt.strip() else row.response, test_fraction),
        )


def _reason_to_drop(row: CorpusRow) -> str | None:
    if not row.response.strip() or (row.rejected is not None and not row.rejected.strip()):
        return "response_empty"
    if row.rejected is not None and row.rejected.split() == row.response.split():
        return "responses_equal"
    return None


def continuing(prompt: str, response: str) -> str:
    """Return a response, which is not empty, with the space that parts it from its prompt where it needs one."""
    apart = not prompt or prompt[-1].isspace() or response[0].isspace()
    return response if apart else f" {response}"


def _texts(row: CorpusRow) -> set[str]:
    """Return the whole texts of a record; what differs in white space alone is the same."""
    responses = [row.response] if row.rejected is None else [row.response, row.rejected]
    return {" ".join(f"{row.prompt}{response}".split()) for response in responses}


def _with_users(rows: Sequence[CorpusRow], per_user: int, streams: Streams) -> list[CorpusRow]:
    """Return the rows in their order, dealt to invented users if nobody is known."""
    unknown = sum(row.user is None for row in rows)
    if not unknown:
        return list(rows)
    if unknown < len(rows):
        raise UserError(
            f"data: {unknown} of {len(rows)} records do not say whose they are; give every record a user, or none, "
            "and users are made up"
        )
    users: dict[int, str] = {}
    for split, prefix in (("train", "user"), ("test", "test-user")):
        own = [i for i, row in enumerate(rows) if row.split == split]
        for place, i in enumerate(streams.numpy(f"corpus/users/{split}").permutation(len(own))):
            users[own[i]] = f"{prefix}-{place // per_user + 1:05d}"
    return [replace(row, user=users[i]) for i, row in enumerate(rows)]


def _example(row: CorpusRow) -> Example:
    assert row.user is not None and row.split is not None
    return Example(row.user, row.group, row.prompt, row.response, row.rejected, row.split)
