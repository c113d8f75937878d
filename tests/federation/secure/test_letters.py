"""Letters as records: what was written is read, and what is malformed is refused as such."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedalign.federation.secure.letters import LETTERS, MASKED, read_letters, read_vectors, write_letters, write_vectors

LEAVES = st.one_of(st.text(max_size=5), st.binary(max_size=40), st.lists(st.binary(max_size=5), max_size=3))
NAMES = st.one_of(st.text(max_size=6), st.just("base64"))


@given(letters=st.dictionaries(NAMES, st.dictionaries(NAMES, LEAVES, min_size=2, max_size=3), max_size=3))
def test_letters_come_back_as_they_were(letters: dict[str, dict[str, Any]]) -> None:
    assert read_letters(RecordDict({LETTERS: write_letters(letters)})) == letters


def test_a_client_named_like_the_mark_of_bytes_is_a_client() -> None:
    letters = {"base64": {"keys": b"\x00\xff"}}
    assert read_letters(RecordDict({LETTERS: write_letters(letters)})) == letters


def test_what_is_neither_text_nor_bytes_does_not_travel() -> None:
    with pytest.raises(TypeError, match="object does not travel"):
        write_letters({"ada": {"x": object()}})


MALFORMED = {
    "no record": RecordDict({}),
    "no field": RecordDict({LETTERS: ConfigRecord({"other": "{}"})}),
    "no JSON": RecordDict({LETTERS: ConfigRecord({"json": "{"})}),
    "a list": RecordDict({LETTERS: ConfigRecord({"json": "[1, 2]"})}),
    "a letter that is text": RecordDict({LETTERS: ConfigRecord({"json": '{"ada": "hello"}'})}),
    "a letter that is bytes": RecordDict({LETTERS: ConfigRecord({"json": '{"ada": {"base64": "AAAA"}}'})}),
    "bytes that are none": RecordDict({LETTERS: ConfigRecord({"json": '{"ada": {"x": {"base64": "!"}}}'})}),
    "too deep": RecordDict({LETTERS: ConfigRecord({"json": '{"a":' * 100_000})}),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_letters_are_a_value_error(kind: str) -> None:
    with pytest.raises(ValueError):
        read_letters(MALFORMED[kind])


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_vectors_come_back_one_at_a_time(dtype: type) -> None:
    masked = {"ada": np.arange(5, dtype=dtype), "bob": np.zeros(0, dtype)}
    found = dict(read_vectors(RecordDict({MASKED: write_vectors(masked)})))
    assert list(found) == ["ada", "bob"]
    for name, vector in masked.items():
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], vector)


def test_vectors_of_other_numbers_are_refused() -> None:
    for vector in (np.zeros(3), np.zeros(3, np.int64)):
        content = RecordDict({MASKED: ArrayRecord({"ada": Array(vector)})})
        with pytest.raises(ValueError, match="ada: masked vector of"):
            list(read_vectors(content))


def test_a_message_without_vectors_and_an_array_without_content_are_refused() -> None:
    with pytest.raises(ValueError, match="no masked vectors"):
        list(read_vectors(RecordDict({})))
    broken = Array("uint64", (3,), "numpy.ndarray", b"no array")
    with pytest.raises(ValueError):
        list(read_vectors(RecordDict({MASKED: ArrayRecord({"ada": broken})})))
