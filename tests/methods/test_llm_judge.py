"""A language model as the judge: both orders, letters that can be read, and a real model behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedalign.build import build
from fedalign.errors import UserError
from fedalign.methods.judges import Judge
from fedalign.methods.llm_judge import Ask, LLMJudge, LocalModel, letter
from tests.language_models import LENGTH, language_model

TEMPLATE = "{criterion}\n{prompt}\nA: {a}\nB: {b}\nAnswer with one letter."
CRITERIA = {"long": "Which is longer?"}


@dataclass(frozen=True)
class Scripted(Ask):
    """Answers by rule and remembers the questions."""

    rule: Callable[[str, str], str]
    asked: list[str] = field(default_factory=list)

    def ask(self, prompt: str) -> str:
        self.asked.append(prompt)
        a, b = (line[3:] for line in prompt.splitlines()[2:4])
        return self.rule(a, b)


def verdicts(rule: Callable[[str, str], str], first: list[str], second: list[str]) -> tuple[list[float], list[str]]:
    ask = Scripted(rule)
    found = LLMJudge(ask, TEMPLATE, CRITERIA).scores("long", ["p"] * len(first), first, second)
    return found.first.tolist(), ask.asked


def test_a_consistent_judge_is_believed_in_both_orders() -> None:
    found, asked = verdicts(lambda a, b: "A" if len(a) > len(b) else "B", ["xxx", "x"], ["x", "xxx"])
    assert found == [1.0, 0.0]
    assert asked[0] == "Which is longer?\np\nA: xxx\nB: x\nAnswer with one letter."
    assert asked[1] == "Which is longer?\np\nA: x\nB: xxx\nAnswer with one letter."
    assert len(asked) == 4


@pytest.mark.parametrize("always", ["A", "B"])
def test_a_judge_that_follows_the_position_decides_nothing(always: str) -> None:
    assert verdicts(lambda a, b: always, ["xxx"], ["x"])[0] == [0.5]


@pytest.mark.parametrize("silent", ["x", "xxx"])
def test_one_unclear_answer_makes_a_pair_unreadable(silent: str) -> None:
    found, _ = verdicts(lambda a, b: "Both are fine." if a == silent else "A", ["xxx"], ["x"])
    assert math.isnan(found[0])


def test_braces_in_a_response_stay() -> None:
    _, asked = verdicts(lambda a, b: "A", ["{b}"], ["{0} }{"])
    assert "A: {b}\nB: {0} }{" in asked[0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *[(text, "A") for text in ("A", " A.", "(A)", "**A**", "A: it is kinder", "Answer: A", "The answer is A.")],
        *[(text, "B") for text in ("B", "[[B]]", "Response B", "My choice is: B, since A is rude", "B) the second")],
        *[(text, None) for text in ("", "...", "A good reply is hard to find", "Both", "AB", "b-side", "C", "a bit")],
        ("A and B are equal", None),
        ("I cannot say. A", None),
    ],
)
def test_letters(answer: str, expected: str | None) -> None:
    assert letter(answer) == expected


def test_an_unknown_preference_is_refused() -> None:
    with pytest.raises(UserError, match="no preference 'lung'; did you mean 'long'"):
        LLMJudge(Scripted(lambda a, b: "A"), TEMPLATE, CRITERIA).scores("lung", [], [], [])


@pytest.mark.parametrize("template", ["{prompt} {a} {b}", TEMPLATE + " {c}", ""])
def test_a_template_must_name_its_fields(template: str) -> None:
    with pytest.raises(UserError, match=r"judge\.template: must name {criterion}, {prompt}, {a}, {b} and nothing"):
        LLMJudge(Scripted(lambda a, b: "A"), template, CRITERIA)


def node(folder: Path, **changes: Any) -> dict[str, Any]:
    ask = {
        "_target_": "fedalign.methods.llm_judge.LocalModel",
        "model": str(folder),
        "max_new_tokens": 4,
        "dtype": "float32",
        "device": "cpu",
    }
    target = "fedalign.methods.llm_judge.LLMJudge"
    return {"_target_": target, "ask": {**ask, **changes}, "template": TEMPLATE, "criteria": CRITERIA}


@pytest.mark.parametrize("kind", ["gpt2", "trained"])
def test_a_local_model_answers_greedily(tmp_path: Path, kind: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = language_model(kind, tmp_path)
    tokenizer, raw = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer("the film was", return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(4):
        with torch.no_grad():
            ids = torch.cat([ids, raw(input_ids=ids).logits[:, -1].argmax(1, keepdim=True)], 1)
        if ids[0, -1] == 0:
            break
    expected = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert LocalModel(str(folder), 4, "float32", "cpu").ask("the film was") == expected
    judge = build(node(folder), Judge, "judge")
    found = judge.scores("long", ["the film was"] * 2, ["good", "bad"], ["dull", "fine"])
    # A model this small gives no letters: nothing is counted as a win.
    assert found.unreadable == 2


def test_a_chat_template_is_used(tmp_path: Path) -> None:
    folder = language_model("gpt2", tmp_path)
    plain = LocalModel(str(folder), 8, "float32", "cpu").ask("good good film was")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}film was {% endfor %}bright")
    told = LocalModel(str(folder), 8, "float32", "cpu")
    assert told.ask("good good film was") == told.ask("dull") != plain
    (folder / "chat_template.jinja").unlink()
    assert LocalModel(str(folder), 8, "float32", "cpu").ask("film was bright") == told.ask("x")


def test_a_question_that_is_too_long_is_refused(tmp_path: Path) -> None:
    folder = language_model("gpt2", tmp_path)
    local = LocalModel(str(folder), 4, "float32", "cpu")
    local.ask("film " * (LENGTH - 4))
    with pytest.raises(UserError, match=rf"reads {LENGTH} tokens, and a question has {LENGTH - 3};"):
        local.ask("film " * (LENGTH - 3))


def test_a_missing_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"judge\.ask\.model=\./absent: no such folder"):
        LocalModel("./absent", 4, "float32", "cpu").ask("x")
