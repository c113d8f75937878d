"""The report: well-formed, self-contained, escaped, and with the run's numbers in it."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from fedalign.errors import UserError
from fedalign.report.headline import default_headline
from fedalign.report.numbers import byte_count, decimals, duration, number
from fedalign.report.render import read_latents, render_run
from fedalign.report.run_page import NO_PRIVACY
from tests.cases import mostly_slow

VOID = {"meta", "img", "wbr"}


class Page(HTMLParser):
    """Reads a page, and complains when a tag is left open or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = "".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def rows(self) -> list[list[str]]:
        return [row for table in self.tables for row in table]

    def table(self, first: str) -> list[list[str]]:
        """Return the table whose first header is ``first``."""
        return next(table for table in self.tables if table[0][0] == first)


def assert_self_contained(page: Page, source: str) -> None:
    for tag, name, value in page.attributes:
        if name in ("src", "href", "action", "data", "poster", "srcset"):
            assert value.startswith("data:image/png;base64,"), (tag, name, value[:60])
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert "http:" not in source and "https:" not in source and "@import" not in source and "url(" not in source


def render(path: Path, **options: Any) -> Page:
    source = render_run(path, **options).read_text(encoding="utf-8")
    page = Page(source)
    assert_self_contained(page, source)
    return page


@pytest.mark.usefixtures("real_plots")
def test_report_and_plots_are_written(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    assert render_run(path) == path / "report.html"
    assert sorted(file.name for file in (path / "plots").iterdir()) == [
        "fairness.png",
        "groups.png",
        "headline.png",
        "training_loss.png",
    ]


@pytest.mark.usefixtures("real_plots")
def test_shows_status_key_numbers_metrics_and_groups(make_run: Callable[..., Path]) -> None:
    page = render(make_run("run", score=0.75))
    assert "pluralllm on synthetic_survey" in page.text and "completed" in page.text
    assert page.tags.count("img") == 4
    assert page.table("metric")[:2] == [
        ["metric", "initial", "train", "test", "unseen"],
        ["alignment_score", "0.6900", "–", "0.7600", "0.7500"],
    ]
    groups = page.table("group")
    assert [row[0] for row in groups[1:4]] == ["Japan", "Brazil", "Kenya"]  # best first
    assert groups[1][groups[0].index("unseen/alignment_score")] == "0.7600"


def test_shows_time_traffic_configuration_and_environment(make_run: Callable[..., Path]) -> None:
    page = render(make_run("run"))
    assert ["server to clients", "1.2 MB"] in page.rows and ["clients to server", "890 bytes"] in page.rows
    assert ["total", "12.5 s"] in page.rows and ["a client update", "18.25 ms"] in page.rows
    assert "prior: none" in page.text and "python: 3.11.7" in page.text


def test_shows_simulated_time_where_it_was_simulated(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    assert "simulated time" not in render(path).text
    content = json.loads((path / "summary.json").read_text())
    content["timing"]["simulated_s"] = 7230.0
    (path / "summary.json").write_text(json.dumps(content))
    assert ["simulated time of all rounds", "2 h 0 min"] in render(path).rows


def test_says_plainly_that_there_is_no_guarantee(make_run: Callable[..., Path]) -> None:
    assert NO_PRIVACY in render(make_run("run")).text
    assert NO_PRIVACY.startswith("no privacy guarantee")


def test_shows_every_term_of_a_guarantee(make_run: Callable[..., Path], guarantee: dict[str, Any]) -> None:
    page = render(make_run("run", privacy={**guarantee, "accountant": "pld"}))
    terms = dict(row for row in page.table("term")[1:])
    assert terms["epsilon"] == "3.25" and terms["delta"] == "1e-05" and terms["accountant"] == "pld"
    assert terms["neighbouring relation"] == "add_remove" and len(terms) == len(guarantee) + 1
    assert NO_PRIVACY not in page.text


def test_a_guarantee_is_said_in_its_sentence_and_with_what_it_leaves_out(
    make_run: Callable[..., Path], guarantee: dict[str, Any]
) -> None:
    told = {"sentence": "Nobody can tell.", "not_covered": ["metrics", "the seed"], "clipping": {"bound": 0.5}}
    page = render(make_run("run", privacy={**guarantee, **told, "epsilon": None, "secure_sum": True}))
    terms = dict(row for row in page.table("term")[1:])
    assert "Nobody can tell." in page.text and "sentence" not in terms
    assert (terms["not covered"], terms["clipping"], terms["epsilon"]) == ("metrics; the seed", "bound: 0.5", "–")
    assert "secure sum" in page.text


def test_a_failed_run_shows_the_reason(make_run: Callable[..., Path]) -> None:
    page = render(make_run("run", reason="every client failed: <no> memory"))
    assert "failed" in page.text and "every client failed: <no> memory" in page.text
    assert "Why it failed" not in render(make_run("other")).text


def test_a_run_that_died_before_it_measured_anything(make_run: Callable[..., Path]) -> None:
    path = make_run("run", reason="nodes never came")
    content = json.loads((path / "summary.json").read_text())
    content.update(metrics={}, groups={}, rounds=0)
    (path / "summary.json").write_text(json.dumps(content))
    (path / "metrics.jsonl").unlink()
    (path / "environment.json").unlink()
    page = render(path)
    assert "nodes never came" in page.text and page.tags.count("img") == 0


@pytest.mark.usefixtures("real_plots")
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ['<script>alert("1")</script>', "a & b", "\"'><img src=x onerror=y>", "$x^{", "日本"],
        ['<script>alert("1")</script>', "$x^{"],
    ),
)
def test_hostile_names_are_text(make_run: Callable[..., Path], name: str) -> None:
    path = make_run("run", groups=[name, "Kenya"], settings={"data.path": name}, reason=name)
    page = render(path)
    assert name in [row[0] for row in page.table("group")]
    assert page.text.count(name) >= 2  # the group and the reason, as they are
    assert page.tags.count("img") == 4  # only the plots
    assert not [value for _, key, value in page.attributes if key.startswith("on")]


def test_a_chosen_headline_comes_first(make_run: Callable[..., Path]) -> None:
    path = make_run("run", score=0.75)
    tiles = re.findall(r'<div class="tile"><b>([^<]*)</b><span>([^<]*)</span>', render_run(path).read_text())
    assert tiles[0] == ("0.7500", "unseen/alignment_score") and tiles[2] == ("0.6900", "initial/alignment_score")
    chosen = render_run(path, headline="test/alignment_score").read_text()
    assert re.search(r'<div class="tile"><b>0.7600</b><span>test/alignment_score</span>', chosen)


def test_rendering_again_shows_what_is_there_now(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    render_run(path)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["data"]["path"] = "elsewhere.csv"
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "elsewhere.csv" in render(path).text


def save_latents(path: Path) -> None:
    (path / "model").mkdir()
    tensors = {
        "latent/helpful/p2": torch.tensor([2.0, 0.0]),
        "latent/helpful/p/1": torch.tensor([1.0, 0.0]),
        "latent/harmless/p3": torch.tensor([0.0, 3.0]),
        "group_mean/helpful": torch.tensor([1.5, 0.0]),
        "latent/weight": torch.zeros(7),
        "reward.weight": torch.zeros(4, 4),
    }
    save_file(tensors, path / "model" / "latents.safetensors")


def test_latents_are_read_by_group_and_nothing_else_is(tmp_path: Path) -> None:
    assert read_latents(tmp_path / "model") == {}
    save_latents(tmp_path)
    found = {group: means.tolist() for group, means in read_latents(tmp_path / "model").items()}
    assert found == {"harmless": [[0.0, 3.0]], "helpful": [[1.0, 0.0], [2.0, 0.0]]}


def test_broken_latents_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "latents.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"latents\.safetensors: not a safetensors file"):
        read_latents(tmp_path)


@pytest.mark.usefixtures("real_plots")
def test_a_run_with_latents_shows_where_people_lie(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    save_latents(path)
    page = render(path)
    assert (path / "plots" / "latent_space.png").exists()
    captions = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt")]
    assert len(captions) == 5 and captions[4].startswith("Posterior means of people")


def test_metrics_of_no_population_have_a_column_too(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    content = json.loads((path / "summary.json").read_text())
    content["metrics"] = {"test/accuracy": 0.5, "latent/silhouette": 0.25}
    (path / "summary.json").write_text(json.dumps(content))
    assert render(path).table("metric") == [
        ["metric", "test", "latent"],
        ["accuracy", "0.5000", "–"],
        ["silhouette", "–", "0.2500"],
    ]


def test_a_run_that_has_not_ended_is_an_error(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    (path / "summary.json").unlink()
    with pytest.raises(UserError, match="has not ended"):
        render_run(path)
    assert not (path / "report.html").exists()


def test_default_headline_prefers_scores_and_unseen_groups() -> None:
    assert (
        default_headline(["train/loss", "test/alignment_score", "unseen/alignment_score"]) == "unseen/alignment_score"
    )
    assert default_headline(["train/loss", "test/accuracy"]) == "test/accuracy"
    assert default_headline(["train/loss"]) == "train/loss"
    assert default_headline([]) == "alignment_score"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1,234,567"), (0.0, "0.0000"), (0.75, "0.7500"), (1.0, "1.0000"), (-1.5, "-1.5000"),
     (123.456, "123.5"), (12345.6, "12,345.6"), (1.5e-05, "1.5e-05"), (2e9, "2e+09")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_an_interval_keeps_two_of_its_digits() -> None:
    assert [decimals(0.75, width) for width in (0.0, 0.02, 0.0003, 0.000012, 1e-12)] == [4, 4, 5, 6, 6]
    assert decimals(250.0, 3.0) == 1


def test_sizes_and_durations() -> None:
    assert [byte_count(n) for n in (0, 999, 1000, 1_250_000, 3_000_000_000, 5 * 10**12)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "3.0 GB", "5.0 TB",
    ]  # fmt: skip
    assert [duration(s) for s in (0.0123, 3.21, 119.0, 600.0, 9000.0)] == [
        "12.3 ms", "3.2 s", "119.0 s", "10 min", "2 h 30 min",
    ]  # fmt: skip
