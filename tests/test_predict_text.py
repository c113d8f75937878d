"""Texts under a stated preference: groups, a person's judgments, a dial between two, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from fedalign.cli import main
from fedalign.errors import UserError
from fedalign.predict import TextRequest, write
from fedalign.predict_text import EVERYBODY, WrittenText, read_prompts
from fedalign.sweep import show_texts
from tests.tiny import trained_run, use_cache
from tests.tiny_policy import policy_run

ASK = TextRequest(("the film was", "I liked"), (), (), None, None, None, (), False)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose policy listens: its weights are moved, because one round teaches it little."""
    import shutil

    base = tmp_path_factory.getbasetemp()
    directory = base / "policy-moved"
    if not directory.is_dir():
        shutil.copytree(policy_run(base), directory)
        path = directory / "model" / "policy.safetensors"
        state = load_file(path)
        generator = torch.Generator().manual_seed(0)
        state["projection.weight"] += 3 * torch.randn(state["projection.weight"].shape, generator=generator)
        state["group_mean/praise"], state["group_mean/criticism"] = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.5])
        state["latent_factor"] = torch.tensor(1.0)
        save_file(state, path)
    return directory


@pytest.fixture(scope="session")
def monolithic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_run(tmp_path_factory.getbasetemp(), "method.policy.condition=false")


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def texts(found: list[WrittenText], preference: str) -> list[str]:
    return [text.text for text in found if text.preference == preference]


def test_by_default_every_group_is_served_prompt_by_prompt(trained: Path) -> None:
    found = write(trained, ASK)
    assert [(text.prompt, text.preference) for text in found] == [
        (prompt, group) for prompt in ASK.prompts for group in ("criticism", "praise")
    ]
    assert texts(found, "criticism") != texts(found, "praise")
    assert write(trained, ASK) == found


def test_a_text_depends_on_its_preference_alone(trained: Path) -> None:
    alone = write(trained, replace(ASK, preferences=("praise",)))
    assert texts(alone, "praise") == texts(write(trained, ASK), "praise")


def test_the_ends_of_a_dial_are_its_preferences_and_between_them_is_the_line(trained: Path) -> None:
    dials = tuple(f"praise:criticism:{place}" for place in ("0", "0.5", "1"))
    found = write(trained, replace(ASK, preferences=("praise", "criticism"), dials=dials))
    assert texts(found, dials[0]) == texts(found, "praise")
    assert texts(found, dials[2]) == texts(found, "criticism")
    assert len({tuple(texts(found, dial)) for dial in dials}) == 3


def test_a_person_is_served_by_its_judgments(trained: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "The acting", "chosen": " was brilliant.", "rejected": " was dull."}]
    (tmp_path / "me.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    turned = [{**rows[0], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]}]
    (tmp_path / "you.jsonl").write_text("\n".join(json.dumps(row) for row in turned))
    found = write(trained, replace(ASK, preferences=("me.jsonl", "you.jsonl"), dials=("me.jsonl:praise:1",)))
    assert texts(found, "me.jsonl") != texts(found, "you.jsonl")
    assert texts(found, "me.jsonl:praise:1") == texts(write(trained, ASK), "praise")


def test_temperature_seed_and_length_are_heard(trained: Path) -> None:
    greedy = write(trained, replace(ASK, temperature=0.0))
    assert greedy == write(trained, replace(ASK, temperature=0.0, seed=5))
    assert write(trained, replace(ASK, seed=5)) != write(trained, ASK)
    assert max(len(text.text.split()) for text in write(trained, replace(ASK, max_new_tokens=2))) <= 2


def test_a_policy_for_everybody_takes_no_preference(monolithic: Path) -> None:
    assert {text.preference for text in write(monolithic, ASK)} == {EVERYBODY}
    for asked in (replace(ASK, preferences=("praise",)), replace(ASK, dials=("praise:criticism:0",))):
        with pytest.raises(UserError, match=r"takes no preference: .* method\.policy\.condition=false"):
            write(monolithic, asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferences": ("prase",)}, "preference 'prase' is neither a group .* did you mean 'praise'"),
        ({"dials": ("praise:0.5",)}, "--dial=praise:0.5: must be A:B:t"),
        ({"dials": ("praise:criticism:far",)}, "must be A:B:t, two preferences and a number"),
        ({"dials": ("praise:critics:0.5",)}, "preference 'critics' is neither"),
        ({"temperature": -1.0}, "--temperature=-1: must be 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens=0: must be 1 or more"),
        ({"max_new_tokens": 100}, "max_new_tokens=100: .* the model reads 64"),
    ],
)
def test_a_mistake_is_named_in_one_line(trained: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        write(trained, replace(ASK, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_run_without_a_policy_writes_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match="has no policy that writes; train one"):
        write(trained_run(tmp_path_factory.getbasetemp()), ASK)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n")
    assert read_prompts(tmp_path / "prompts.txt") == ["one", "two"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="holds no prompt; write one a line"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="cannot be read as UTF-8 text"):
        read_prompts(tmp_path / "nowhere.txt")


def test_the_command_shows_texts_side_by_side_and_writes_them(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.txt").write_text("I disliked\n")
    asked = ["--prompt", "the film was", "--prompts", "more.txt", "--greedy", "--dial", "praise:criticism:0.25"]
    assert main(["predict", str(trained), *asked, "--preference", "praise", "--out", "texts.json"]) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "texts.json").read_text())
    assert [row["prompt"] for row in rows] == ["the film was"] * 2 + ["I disliked"] * 2
    assert [row["preference"] for row in rows[:2]] == ["praise", "praise:criticism:0.25"]
    assert all(name in shown for name in ("the film was", "I disliked", "praise:criticism:0.25"))


@pytest.mark.parametrize("arguments", [[], ["answers.jsonl", "--prompt", "Well"]])
def test_what_is_asked_must_be_clear(trained: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(trained), *arguments]) == 2
    assert "give either a file (answers, judgments, responses) or prompts to continue" in capsys.readouterr().err


def test_texts_are_shown_a_row_a_prompt() -> None:
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        show_texts(console, [WrittenText("p", "a", "one"), WrittenText("p", "b", "[two]")])
    (row,) = [line for line in captured.get().splitlines() if "one" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["p", "one", "[two]"]
