"""What was asked for last is kept, and no more than that."""

from __future__ import annotations

from fedalign.data.recent import Recent


def test_a_thing_is_made_once_while_it_is_kept() -> None:
    made: list[str] = []

    def maker(name: str):  # type: ignore[no-untyped-def]
        def make() -> str:
            made.append(name)
            return name.upper()

        return make

    recent: Recent[str] = Recent(2)
    assert [recent.get(name, maker(name)) for name in "abab"] == ["A", "B", "A", "B"]
    assert made == ["a", "b"]
    recent.get("a", maker("a"))
    recent.get("c", maker("c"))  # b was asked for before a, and goes
    assert len(recent) == 2
    recent.get("a", maker("a"))
    recent.get("b", maker("b"))
    assert made == ["a", "b", "c", "b"]
