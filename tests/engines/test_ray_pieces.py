"""How a cohort is cut: everybody once, in order, in runs that depend on nothing but cohort and settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.engines.ray_pieces import Answer, Piece, Share, Slot, cut


@given(clients=st.integers(0, 300), workers=st.integers(1, 9), largest=st.integers(1, 40))
def test_everybody_is_in_one_run_and_none_is_too_long(clients: int, workers: int, largest: int) -> None:
    names = [f"c{number}" for number in range(clients)]
    runs = cut(names, workers, largest)
    assert [name for run in runs for name in run] == names
    assert all(1 <= len(run) <= largest for run in runs)
    lengths = [len(run) for run in runs]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(("clients", "workers", "largest"), [(8, 2, 16), (20, 2, 16), (1000, 2, 16), (12, 3, 100)])
def test_every_worker_gets_several_runs_and_the_last_ones_are_short(clients: int, workers: int, largest: int) -> None:
    runs = cut([str(number) for number in range(clients)], workers, largest)
    assert len(runs) > 2 * workers or clients <= 3 * workers
    assert len(runs[-1]) <= min(4, -(-clients // (8 * workers)))
    assert len(runs[0]) == min(largest, -(-2 * clients // (3 * workers)))


def test_runs_cost_too_much_to_be_a_client_each_where_clients_are_many() -> None:
    assert [len(run) for run in cut(["c"] * 20, 2, 16)] == [7, 5, 3, 2, 2, 1]
    assert [len(run) for run in cut(["c"] * 20, 1, 16)] == [10, 10]
    assert min(len(run) for run in cut(["c"] * 100, 2, 16)[:-1]) == 4


def piece(clients: tuple[str, ...], **more: Any) -> Piece:
    return Piece(None, Share(1, None), clients, **more)  # type: ignore[arg-type]


def test_a_piece_falls_apart_into_its_clients_with_their_letters_and_its_history() -> None:
    whole = piece(("ada", "bob"), letters={"ada": {"a": 1}, "bob": {}}, deaths=2, retries=3)
    first, second = whole.singles()
    assert (first.clients, first.letters, first.deaths, first.retries) == (("ada",), {"ada": {"a": 1}}, 2, 3)
    assert (second.clients, second.letters, second.deaths, second.retries) == (("bob",), {"bob": {}}, 2, 0)
    assert piece(("ada", "bob")).singles()[0].letters is None


def test_a_slot_is_complete_when_every_piece_is_answered() -> None:
    one, other = piece(("ada",), answer=Answer()), piece(("bob",))
    slot = Slot([one, other])
    assert not slot.complete
    other.answer = Answer(dropped="gone")
    assert slot.complete
