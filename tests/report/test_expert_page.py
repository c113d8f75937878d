"""The page of who wrote: every token in its expert's colour, no text that breaks it, nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from fedalign.report.canvas import CATEGORIES
from fedalign.report.expert_page import WeighedText, expert_page

TEXT = WeighedText("The film", "kind, terse", (" was", " <good>", ""), ((0.75, 0.25), (0.1, 0.9), (1.0, 0.0)))


class Spans(HTMLParser):
    """Collects tokens with their titles and styles, and what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[tuple[str, str, str]] = []
        self.links: list[str] = []
        self._open: dict[str, str | None] | None = None

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.links += [tag] if tag in ("script", "link", "iframe") else []
        self._open = own if tag == "span" and own.get("class") == "token" else None

    def handle_data(self, data):
        if self._open is not None:
            self.tokens.append((data, self._open["title"] or "", self._open["style"] or ""))
            self._open = None


def read(*texts: WeighedText, experts: tuple[str, ...] = ("kind", "terse")) -> tuple[str, Spans]:
    content = expert_page("Who wrote", "a note", experts, texts)
    spans = Spans()
    spans.feed(content)
    return content, spans


def colour(place: int) -> str:
    return ",".join(str(int(CATEGORIES[place][start : start + 2], 16)) for start in (1, 3, 5))


def test_a_token_has_the_colour_of_its_heaviest_expert_and_says_all_weights() -> None:
    _, spans = read(TEXT)
    assert [token for token, _, _ in spans.tokens] == [" was", " <good>"]
    assert [title for _, title, _ in spans.tokens] == ["kind 0.750, terse 0.250", "kind 0.100, terse 0.900"]
    assert [colour(place) in style for place, (_, _, style) in enumerate(spans.tokens)] == [True, True]


def test_the_heavier_the_stronger() -> None:
    weak = WeighedText("", "a", ("x", "y"), ((0.5, 0.5), (1.0, 0.0)))
    strengths = [float(style.rpartition(",")[2].rstrip(")")) for _, _, style in read(weak)[1].tokens]
    assert 0 < strengths[0] < strengths[1] < 0.6


def test_means_are_over_the_tokens() -> None:
    assert TEXT.mean == pytest.approx((1.85 / 3, 1.15 / 3))
    content, _ = read(TEXT)
    assert re.findall(r"width:([\d.]+)%", content) == ["61.7", "38.3"]
    assert "kind 0.617" in content and "terse 0.383" in content


def test_an_expert_without_part_is_left_out_of_the_text_and_kept_in_the_legend() -> None:
    content, spans = read(WeighedText("", "kind", ("x",), ((1.0, 0.0),)))
    assert spans.tokens[0][1] == "kind 1.000"
    assert content.count("terse") == 1


def test_everything_is_escaped() -> None:
    evil = "<script>alert('x')</script>\"&"
    content, spans = read(WeighedText(evil, evil, (evil,), ((1.0, 0.0),)), experts=(evil, "b"))
    assert "<script" not in content
    assert spans.tokens[0][0] == evil
    assert spans.tokens[0][1] == f"{evil} 1.000"


def test_nothing_is_loaded_from_elsewhere() -> None:
    content, spans = read(TEXT, TEXT)
    assert spans.links == []
    assert "http" not in content and "url(" not in content and "@import" not in content


def test_more_experts_than_colours_and_no_text_at_all() -> None:
    many = tuple(f"expert-{i}" for i in range(30))
    one = tuple(float(i == 29) for i in range(30))
    content, spans = read(WeighedText("p", "all", ("x",), (one,)), experts=many)
    assert spans.tokens[0][1] == "expert-29 1.000"
    assert "expert-29 1.000" in content
    read()
    assert WeighedText("p", "all", (), ()).mean == ()
    read(WeighedText("p", "all", (), ()))
