"""A new annotator's type, told by its judgments, what it finds best, and texts by types' policies."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from fedalign.cli import main
from fedalign.config import parse, resolve
from fedalign.contribution import State
from fedalign.data.progress import silent
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.em import EMPhase
from fedalign.methods.mixture_policy import MixturePolicy
from fedalign.methods.mmra import MIXTURE
from fedalign.methods.text_policies import AdapterPolicy, Writing
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import PRIOR, named, type_of
from fedalign.opened_run import OpenedRun
from fedalign.predict import TextRequest, predict, write
from fedalign.predict_rankings import MenuPrediction, TypeShares, predict_rankings, read_annotator
from fedalign.predict_types import TypeText, write_types
from fedalign.rng import Streams
from fedalign.run import start
from fedalign.site import setting
from fedalign.sweep import show_predictions
from tests.tiny import use_cache
from tests.tiny_policy import language_model_of

Row = dict[str, Any]
Write = Callable[[Sequence[Row]], Path]

TYPES = ("method=emdpo", "method.types=2", "method/start=random")
LINEAR = (*TYPES, "data=linear_rankings", "data.dimension=2", "data.annotators=4", "data.responses=3", "data.form=full",
          "encoder.size=2", "model=linear_utility")  # fmt: skip
FILMS = (*TYPES, "data.annotators=3", "data.train_judgments=4", "data.test_judgments=1")
UTILITIES = np.array([[2.0, 0.0], [-1.0, 0.5]])
SHARES = np.array([0.75, 0.25])
ITEMS = {"+1.0 +0.0": (1.0, 0.0), "+0.0 +1.0": (0.0, 1.0), "-1.0 +0.5": (-1.0, 0.5)}
MENU = list(ITEMS)
JUDGED: list[Row] = [
    {"prompt": "Menu 1", "responses": MENU, "ranks": [3, 1, 2]},
    {"prompt": "Menu 2", "responses": MENU[:2], "ranks": [2, 1]},
    {"prompt": "Menu 3", "responses": MENU, "ranks": [None, None, 1]},
]
ASKED: list[Row] = [{"prompt": "Menu 4", "responses": MENU}, {"prompt": "Menu 5", "responses": MENU[1:], "ranks": None}]
ASK = TextRequest(("the film was", "I liked", "a plot"), (), (), None, None, None, (), False)


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def write_file(tmp_path: Path) -> Write:
    def jsonl(rows: Sequence[Row], name: str = "judgments.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model_of(tmp_path_factory.getbasetemp())


def opened(overrides: Sequence[str], types: State | None = None) -> OpenedRun:
    """Return a run as if EM had ended with these types, or with types drawn far apart."""
    config = parse(resolve([*overrides, "method.start.scale=2.0"]))
    run = OpenedRun(Path("outputs/run"), config, config.method.phases(setting(config)), {})
    state = em_of(run).initial(Streams(0), {}) | {PRIOR: torch.tensor(SHARES, dtype=torch.float32)} | (types or {})
    return replace(run, states={"em": state})


def linear() -> OpenedRun:
    weights = torch.tensor(UTILITIES, dtype=torch.float32)
    return opened(LINEAR, {k: t for i in range(2) for k, t in named({"score.weight": weights[i : i + 1]}, i).items()})


def mixed(run: OpenedRun, weights: Sequence[float], *names: str) -> OpenedRun:
    """Return a run whose phases of these names, and the one that mixes types, have also ended."""
    later: State = {**run.states["em"], MIXTURE: torch.tensor(weights)}
    return replace(run, states={**run.states, **dict.fromkeys(("mmra", *names), later)})


def em_of(run: OpenedRun) -> EMPhase:
    (em,) = (phase for phase in run.phases if isinstance(phase, EMPhase))
    return em


def posterior_by_hand() -> np.ndarray[Any, Any]:
    """Return the posterior after ``JUDGED``, choice by choice."""
    u = UTILITIES @ np.array(list(ITEMS.values())).T
    chosen = [(1, (0, 1, 2)), (2, (0, 2)), (1, (0, 1)), (2, (0, 1, 2))]
    logs = sum(u[:, best] - np.log(np.exp(u[:, list(among)]).sum(1)) for best, among in chosen)
    weights = SHARES * np.exp(logs)
    found: np.ndarray[Any, Any] = weights / weights.sum()
    return found


def best_by_hand(posterior: np.ndarray[Any, Any], menu: Sequence[str]) -> dict[str, float]:
    u = np.array([[weight @ np.array(ITEMS[text]) for text in menu] for weight in UTILITIES])
    found = posterior @ (np.exp(u) / np.exp(u).sum(1, keepdims=True))
    return dict(zip(menu, found.tolist(), strict=True))


def told(run: OpenedRun, path: Path) -> tuple[TypeShares, list[MenuPrediction]]:
    first, *menus = predict_rankings(run, path)
    assert isinstance(first, TypeShares)
    return first, [menu for menu in menus if isinstance(menu, MenuPrediction)]


def test_posterior_and_chances_are_those_by_hand(write_file: Write) -> None:
    types, menus = told(linear(), write_file([ASKED[0], *JUDGED, ASKED[1]]))
    expected = posterior_by_hand()
    assert types.question == "3 judgments"
    assert types.options == ("type-0", "type-1")
    np.testing.assert_allclose(types.shares, expected, atol=1e-6)
    assert [menu.question for menu in menus] == ["Menu 4", "Menu 5"]
    for menu, row in zip(menus, ASKED, strict=True):
        by_hand = best_by_hand(expected, row["responses"])
        assert list(menu.options) == sorted(by_hand, key=lambda text: -by_hand[text])
        np.testing.assert_allclose(menu.shares, [by_hand[text] for text in menu.options], atol=1e-6)


def test_without_judgments_types_are_as_the_mixture_or_else_the_shares_have_them(write_file: Write) -> None:
    path = write_file(ASKED)
    types, (menu, _) = told(linear(), path)
    assert types.question == "no judgment: shares of the annotators"
    np.testing.assert_allclose(types.shares, SHARES, atol=1e-6)
    assert dict(zip(menu.options, menu.shares, strict=True)) == pytest.approx(best_by_hand(SHARES, MENU), abs=1e-6)
    run = mixed(linear(), [0.125, 0.875])
    assert told(run, path)[0] == TypeShares("no judgment: the mixture for everybody", (0.125, 0.875))
    # Who has judged is told by the shares all the same.
    np.testing.assert_allclose(told(run, write_file(JUDGED))[0].shares, posterior_by_hand(), atol=1e-6)


def test_csv_is_read_too(tmp_path: Path, write_file: Write) -> None:
    with (tmp_path / "judgments.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "responses", "ranks"])
        for row in [*JUDGED, *ASKED]:
            ranks = json.dumps(row["ranks"]) if row.get("ranks") else ""
            table.writerow([row["prompt"], json.dumps(row["responses"]), ranks])
    assert told(linear(), tmp_path / "judgments.csv") == told(linear(), write_file([*JUDGED, *ASKED]))


def test_a_menu_of_nulls_is_asked_and_what_was_judged_is_cleaned(write_file: Write) -> None:
    nulls = {**ASKED[0], "ranks": [None] * 3}
    tied = {**JUDGED[0], "prompt": "Menu 6", "ranks": [1, 1, 1]}
    held_out = {**JUDGED[0], "split": "test"}
    known, asked = read_annotator(write_file([held_out, *JUDGED[1:], JUDGED[0], tied, nulls]))
    assert [(r.prompt, r.split) for r in known] == [(row["prompt"], "train") for row in JUDGED]
    assert [(r.prompt, r.tiers) for r in asked] == [("Menu 4", (0, 0, 0))]


def rows_of(shard: RankingShard, index: Sequence[int]) -> list[Row]:
    """Return judgments of a shard as a file has them."""
    tiers = shard.tiers.tolist()
    return [
        {"prompt": shard.prompts[i], "responses": shard.responses[i], "ranks": tiers[i][: len(shard.responses[i])]}
        for i in index
    ]


@pytest.mark.parametrize("kind", ["linear", "texts", "language model"])
def test_a_file_tells_as_much_as_the_same_judgments_in_training(kind: str, model: Path, write_file: Write) -> None:
    language = ("model=gpt2_lora", f"model.model={model}", "method.lengths.prompt=8", "method.lengths.response=6")
    overrides: Mapping[str, tuple[str, ...]] = {
        "linear": LINEAR,
        "texts": (*FILMS, "encoder.size=16"),
        "language model": (*FILMS, "encoder.size=16", *language),
    }
    run = opened(overrides[kind])
    config = run.config
    data = config.data.federate(config.partition, config.encoder, Streams(0), None, silent)
    shard = data.shard(data.clients[0].name)
    em = em_of(run)
    with torch.no_grad():
        expected = em.posteriors(run.states["em"], shard, shard.train)[:, 0]
    assert (expected - torch.tensor(SHARES)).abs().max() > 1e-3
    types, (menu,) = told(run, write_file([*rows_of(shard, shard.train.tolist()), {"prompt": "?", "responses": MENU}]))
    np.testing.assert_allclose(types.shares, expected, atol=1e-4)
    assert sum(menu.shares) == pytest.approx(1)
    assert list(menu.shares) == sorted(menu.shares, reverse=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no row; write rows with prompt, responses and"),
        ([{"prompt": "Well", "ranks": [1, 2]}], "no column 'responses'"),
        ([{"prompt": "Well", "responses": "a"}], "'responses' holds 'a'; it must be a list"),
        ([{"prompt": "Well", "responses": ["+1 +1"]}], "'responses' holds 1 of them; a judgment needs two"),
        ([{"prompt": "Well", "responses": ["+1 +1", " +1 +1"]}], "line 1: .* two responses are the same"),
        ([{"prompt": " ", "responses": MENU}], "line 1: prompt or a response is empty"),
        ([{**JUDGED[0], "ranks": [1, 2]}], "'ranks' holds 2 ranks for 3 responses"),
        ([{**JUDGED[0], "ranks": [1, 1, 1]}], "no usable ranking is left; .*all_tied"),
        (
            [{**row, "annotator": f"a{i}"} for i, row in enumerate(JUDGED)],
            "judgments of 3 annotators, a0, a1, a2;",
        ),
        ([{"prompt": "Well", "responses": ["hot", "cold"]}], "trained on vectors, .* one of 2 numbers, such as"),
        ([{"prompt": "Well", "responses": ["1 2 3", "4 5 6"]}], r"must spell one of 2 numbers, such as \+0.5 \+0.5$"),
        ([{"prompt": "Well", "responses": ["1 2", "4 5 6"]}], "must spell one of 2 numbers"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(write_file: Write, rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        predict_rankings(linear(), write_file(rows))
    assert "\n" not in str(caught.value)


def test_predictions_as_data_and_as_tables() -> None:
    types, menu = TypeShares("1 judgment", (0.25, 0.75)), MenuPrediction("p", ("b", "a"), (0.6, 0.4))
    assert types.to_json() == {"told_by": "1 judgment", "types": ["type-0", "type-1"], "probabilities": [0.25, 0.75]}
    assert menu.to_json() == {"prompt": "p", "responses": ["b", "a"], "probabilities": [0.6, 0.4]}
    console = Console(width=80)
    with console.capture() as captured:
        show_predictions(console, [types, menu])
    shown = captured.get()
    assert all(word in shown for word in ("told by", "1 judgment", "type-1", "0.750", "prompt", "0.600"))


@pytest.fixture(scope="module")
def writers(model: Path) -> OpenedRun:
    lengths = ("method.lengths.prompt=8", "method.lengths.response=6")
    return opened((*FILMS, "encoder.size=16", "model=gpt2_lora", f"model.model={model}", "model.rank=4", *lengths,
                   "method.beta=20.0", "method/single=log_linear"))  # fmt: skip


def texts(found: Sequence[TypeText], preference: str) -> list[str]:
    return [text.text for text in found if text.preference == preference]


def by_policy(policy: Any) -> list[str]:
    writing = Writing(samples=1, max_new_tokens=6, temperature=1.0, batch=3)
    found: list[str] = policy.write(ASK.prompts, writing, Streams(0).torch("predictions/text")).texts
    return found


def types_of(run: OpenedRun) -> AdapterTypes:
    model = em_of(run).model
    assert isinstance(model, AdapterTypes)
    return model


def test_types_write_side_by_side_prompt_by_prompt(writers: OpenedRun) -> None:
    found = write_types(writers, replace(ASK, preferences=("type-0", "type-1")))
    assert [(t.prompt, t.label) for t in found] == [(p, label) for p in ASK.prompts for label in ("type-0", "type-1")]
    for number in range(2):
        own = AdapterPolicy(types_of(writers), type_of(writers.states["em"], number))
        assert texts(found, f"type-{number}") == by_policy(own)
    assert texts(found, "type-0") != texts(found, "type-1")


def test_everybody_is_served_by_the_mixture_or_what_stands_for_it(writers: OpenedRun) -> None:
    state = writers.states["em"]
    shares = write_types(writers, ASK)
    assert {text.label for text in shares} == {"shares"}
    assert texts(shares, "shares") == by_policy(MixturePolicy(types_of(writers), state, state[PRIOR]))
    # All weight on one type: the mixture writes as that type does.
    fairer = mixed(writers, [0.0, 1.0])
    assert texts(write_types(fairer, ASK), "mixture") == by_policy(
        MixturePolicy(types_of(writers), state, torch.tensor([0.0, 1.0]))
    )
    merged = mixed(writers, [0.0, 1.0], "single")
    found = write_types(merged, replace(ASK, preferences=("single", "mixture", "type-1")))
    assert texts(found, "single") == texts(found, "type-1")
    assert {text.label for text in write_types(merged, ASK)} == {"single"}


def test_an_annotator_is_served_by_its_likeliest_type(writers: OpenedRun, write_file: Write) -> None:
    first = {"prompt": "the film was", "responses": ["good", "bad"], "ranks": [1, 2]}
    by_rank = []
    for ranks in ([1, 2], [2, 1]):
        path = write_file([{**first, "prompt": p, "ranks": ranks} for p in ASK.prompts])
        shares = told(writers, path)[0].shares
        found = write_types(writers, replace(ASK, preferences=(path.name,)))
        best = int(np.argmax(shares))
        assert found[0].posterior == pytest.approx(shares)
        assert found[0].label == f"judgments.jsonl (type-{best}, probability {max(shares):.2f})"
        own = write_types(writers, replace(ASK, preferences=(f"type-{best}",)))
        assert texts(found, path.name) == texts(own, f"type-{best}")
        by_rank.append(best)
    assert set(by_rank) == {0, 1}
    nobody = write_types(writers, replace(ASK, preferences=(write_file([{**first, "ranks": None}]).name,)))
    assert {text.label for text in nobody} == {"judgments.jsonl (shares)"}
    assert "posterior" not in nobody[0].to_json()


def test_one_policy_for_all_writes_alone(model: Path) -> None:
    one = opened(("method=dpo", *FILMS[3:], "encoder.size=16", "model=gpt2_lora", f"model.model={model}",
                  "method.lengths.prompt=8", "method.lengths.response=6"), {PRIOR: torch.ones(1)})  # fmt: skip
    assert {text.label for text in write_types(one, ASK)} == {"type-0"}


def test_temperature_seed_and_length_are_heard(writers: OpenedRun) -> None:
    one = replace(ASK, preferences=("type-0",))
    assert write_types(writers, replace(one, temperature=0.0, seed=1)) == write_types(
        writers, replace(one, temperature=0.0, seed=2)
    )
    assert write_types(writers, replace(one, seed=5)) != write_types(writers, one)
    assert max(len(t.shown.split()) for t in write_types(writers, replace(one, max_new_tokens=2))) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferences": ("type-2",)}, "'type-2' is neither a file .* type-0, type-1, shares; did you mean"),
        ({"preferences": ("single",)}, "preference 'single' is neither"),
        ({"stages": ("sft",)}, "this run has types, no stages"),
        ({"score": True}, "leave --stage, --score and --dial out"),
        ({"dials": ("type-0:type-1:0.5",)}, "choose with --preference"),
        ({"temperature": -1.0}, "--temperature=-1: must be 0"),
        ({"max_new_tokens": 100}, "max_new_tokens=100: .* the model reads 64"),
    ],
)
def test_a_mistake_is_named_in_one_line(writers: OpenedRun, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        write_types(writers, replace(ASK, **change))
    assert "\n" not in str(caught.value)


def test_heads_write_nothing() -> None:
    with pytest.raises(UserError, match=r"reward networks and write nothing; .* model=gpt2_lora"):
        write_types(linear(), ASK)


def test_the_command_serves_a_new_annotator_of_a_finished_run(
    tmp_path: Path, write_file: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    start([*LINEAR, "method.start.scale=2.0", "federation.rounds=1", "output=run"])
    path = write_file([*JUDGED, *ASKED])
    assert main(["predict", "run", str(path), "--out", "found.json"]) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "found.json").read_text())
    assert rows == [found.to_json() for found in predict(Path("run"), path)]
    assert rows[0]["told_by"] == "3 judgments"
    assert all(word in shown for word in ("3 judgments", "type-1", "Menu 5", f"{rows[2]['probabilities'][0]:.3f}"))
    with pytest.raises(UserError, match="write nothing"):
        write(Path("run"), ASK)
