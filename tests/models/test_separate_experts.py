"""Separate experts against their models alone, vocabularies that must agree, and black boxes that are not trusted."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.causal import CausalModel
from fedalign.models.experts import Pairs
from fedalign.models.separate_experts import CallableExperts, NextToken, SeparateExperts, TopProbabilities
from tests import language_models
from tests.language_models import WORDS, random_model

IDS = torch.tensor([[2, 3, 4, 5, 9], [6, 7, 8, 9, 3], [12, 4, 4, 17, 6]])
MASK = torch.ones_like(IDS)
V, SHORTER = len(WORDS), 32
NAMES = ["terse", "kind"]
SOME = Pairs.of(torch.tensor([[True, True], [False, True], [True, False]]))
ONE = Pairs.of(torch.tensor([[False, True]] * 3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models that share their tokens and nothing else: the second is smaller, reads less, and ends at token 7."""
    from transformers import GPT2Config, GPT2LMHeadModel

    first, second = (random_model("gpt2", tmp_path_factory.mktemp(name)) for name in NAMES)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        size = {"vocab_size": V, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": SHORTER}
        config = GPT2Config(**size, initializer_range=0.3, eos_token_id=7, bos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(second)
    return [first, second]


@pytest.fixture(scope="module")
def separate(folders: list[Path]) -> SeparateExperts:
    return SeparateExperts(folders, NAMES, "float32", "cpu")


@pytest.fixture(scope="module")
def plain(folders: list[Path]) -> list[Any]:
    """The oracle: the models as transformers loads them."""
    from transformers import AutoModelForCausalLM

    return [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders]


def expected(plain: list[Any], pairs: Pairs) -> Tensor:
    with torch.no_grad():
        each = [model(input_ids=IDS, attention_mask=MASK).logits.log_softmax(2) for model in plain]
    return torch.stack([each[e][t] for t, e in zip(pairs.text.tolist(), pairs.expert.tolist(), strict=True)])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------- separate


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_each_row_is_its_own_model(separate: SeparateExperts, plain: list[Any], order: list[int]) -> None:
    pairs = Pairs(SOME.text[torch.tensor(order)], SOME.expert[torch.tensor(order)])
    found, cache = separate.advance(pairs, IDS, MASK, None, keep_cache=False)
    assert cache is None
    assert found.dtype == torch.float32
    close(found, expected(plain, pairs))
    last, _ = separate.advance(pairs, IDS, MASK, None, last_only=True)
    close(last, found[:, -1:])


@pytest.mark.parametrize("steps", [(3, 1, 1), (1, 4)])
def test_caches_change_nothing(separate: SeparateExperts, plain: list[Any], steps: tuple[int, ...]) -> None:
    pad = torch.ones(3, 2, dtype=torch.int64)
    ids, mask = torch.cat([pad, IDS], 1), torch.cat([0 * pad, MASK], 1)
    cache, start, parts = None, 0, []
    for new in (2 + steps[0], *steps[1:]):
        found, cache = separate.advance(SOME, ids[:, start : start + new], mask[:, : start + new], cache)
        parts.append(found)
        start += new
    close(torch.cat(parts, 1)[:, 2:], expected(plain, SOME))


def test_an_expert_that_nobody_asks_is_not_run(separate: SeparateExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[CausalModel, int]] = []
    advance = CausalModel.advance

    def counting(model: CausalModel, ids: Tensor, *rest: Any) -> tuple[Tensor, Any]:
        asked.append((model, len(ids)))
        return advance(model, ids, *rest)

    monkeypatch.setattr(CausalModel, "advance", counting)
    _, cache = separate.advance(ONE, IDS, MASK, None)
    separate.advance(ONE, IDS[:, :1], torch.cat([MASK, MASK[:, :1]], 1), cache)
    assert [rows for _, rows in asked] == [3, 3]
    assert len({id(model) for model, _ in asked}) == 1
    separate.advance(SOME, IDS, MASK, None)
    assert [rows for _, rows in asked[2:]] == [2, 2]


def test_the_base_is_the_even_mixture(separate: SeparateExperts, plain: list[Any]) -> None:
    each = expected(plain, Pairs.of(torch.ones(3, 2, dtype=torch.bool))).view(3, 2, 5, V)
    close(separate.base(IDS, MASK), each.exp().mean(1).log())


def test_any_experts_end_is_an_end_and_the_shortest_counts(separate: SeparateExperts) -> None:
    assert separate.names == ("terse", "kind")
    assert separate.vocabulary == V
    assert separate.end_tokens == (0, 7)
    assert separate.pad_token == 0
    assert separate.max_tokens == SHORTER
    assert separate.device == torch.device("cpu")


def with_words(monkeypatch: pytest.MonkeyPatch, words: list[str], folder: Path) -> Path:
    folder.mkdir()
    monkeypatch.setattr(language_models, "WORDS", words)
    return random_model("gpt2", folder)


def refusal(first: Path, second: Path) -> str:
    with pytest.raises(UserError) as error:
        SeparateExperts([first, first, second], ["terse", "plain", "kind"], "float32", "cpu")
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"method.experts.models.kind={second}: ")
    assert message.endswith("; experts must share one vocabulary; choose models of one family")
    return message.partition(": ")[2].partition(";")[0]


def test_vocabularies_of_other_sizes_are_refused(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_words(monkeypatch, [*WORDS, "extra"], tmp_path / "other")
    assert refusal(folders[0], other) == f"its tokenizer has {V + 1} tokens, that of terse {V}"


def test_vocabularies_of_other_words_are_refused(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_words(monkeypatch, [*WORDS[:3], "movie", *WORDS[4:]], tmp_path / "other")
    assert refusal(folders[0], other) == "its token 3 is 'movie', token 3 of terse is 'film'"


def test_logits_of_other_widths_are_refused(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = with_words(monkeypatch, [*WORDS, "extra"], tmp_path / "other")
    for file in folders[0].glob("tokenizer*"):
        shutil.copy(file, other)
    assert refusal(folders[0], other) == f"its logits are over {V + 1} tokens, those of terse over {V}"


def test_a_model_that_cannot_be_loaded_is_named(folders: list[Path], tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(UserError, match=rf"^method\.experts\.models\.kind={absent}: cannot be loaded") as error:
        SeparateExperts([folders[0], absent], NAMES, "float32", "cpu")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ black boxes


def service(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a black box around a model, which insists on texts that do not end in padding."""

    def ask(ids: Tensor, mask: Tensor) -> Tensor:
        assert mask.shape == ids.shape
        assert mask[:, -1].all()
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        found: Tensor = logits[:, -1].softmax(1)
        return found

    return ask


def boxes(*functions: NextToken, top: int | None = None, floor: float = 0.01, vocabulary: int = V) -> CallableExperts:
    return CallableExperts(functions, NAMES[: len(functions)], vocabulary, (0, 7), 3, 50, top, floor)


def answer(*rows: list[float]) -> NextToken:
    return lambda ids, mask: torch.tensor(rows)


def of_one(function: NextToken, vocabulary: int, **options: Any) -> Tensor:
    """Return what one black box finds of the token after a text, as probabilities."""
    experts = boxes(function, vocabulary=vocabulary, **options)
    pairs = Pairs.of(torch.ones(1, 1, dtype=torch.bool))
    found, _ = experts.advance(pairs, torch.tensor([[1]]), torch.tensor([[1]]), None)
    assert found.isfinite().all()
    return found[0, 0].exp()


def test_black_boxes_are_the_models_in_them(separate: SeparateExperts, plain: list[Any]) -> None:
    experts = boxes(*map(service, plain))
    mask = MASK.clone()
    mask[0, :2] = 0
    whole, cache = experts.advance(SOME, IDS, mask, None, keep_cache=False)
    assert cache is None
    assert whole.dtype == torch.float32
    seen = mask.bool()[SOME.text]
    close(whole[seen], separate.advance(SOME, IDS, mask, None)[0][seen])
    # Nobody says what follows padding.
    assert torch.allclose(whole[~seen], torch.tensor(-math.log(V)))
    first, cache = experts.advance(SOME, IDS[:, :3], mask[:, :3], None)
    rest, cache = experts.advance(SOME, IDS[:, 3:], mask, cache)
    close(torch.cat([first, rest], 1), whole)
    last, _ = experts.advance(SOME, IDS, mask, None, last_only=True)
    close(last, whole[:, -1:])


def test_black_boxes_are_asked_once_a_prefix() -> None:
    shapes: list[tuple[int, ...]] = []

    def ask(ids: Tensor, mask: Tensor) -> Tensor:
        shapes.append(tuple(ids.shape))
        return torch.full((len(ids), V), 1 / V)

    experts = boxes(ask, ask)
    _, cache = experts.advance(ONE, IDS, MASK, None, last_only=True)
    assert shapes == [(3, 5)]
    longer = torch.cat([MASK, MASK[:, :2]], 1)
    experts.advance(ONE, IDS[:, :2], longer, cache)
    assert shapes[1:] == [(3, 6), (3, 7)]


def test_what_black_boxes_say_of_themselves() -> None:
    experts = boxes(answer([0.5, 0.5]), answer([0.5, 0.5]), vocabulary=2)
    about = experts.names, experts.vocabulary, experts.end_tokens, experts.pad_token, experts.max_tokens
    assert about == (("terse", "kind"), 2, (0, 7), 3, 50)
    assert experts.device == torch.device("cpu")
    with pytest.raises(ValueError, match="zip"):
        CallableExperts([answer([1.0])], NAMES, 2, (), 0, None, None, 0.1)


def test_probabilities_are_normalised_and_otherwise_kept() -> None:
    found = of_one(answer([0.25, 0.125, 0.125]), 3)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(of_one(answer([0.5, 0.3, 0.2009]), 3).sum(), torch.tensor(1.0))


def test_impossible_tokens_get_the_floor() -> None:
    found = of_one(answer([0.0, 0.75, 0.25, 0.0]), 4, floor=0.04)
    torch.testing.assert_close(found, torch.tensor([0.01, 0.73, 0.25, 0.01]))


def test_only_the_likeliest_are_used_where_that_is_asked() -> None:
    found = of_one(answer([0.1, 0.2, 0.3, 0.4]), 4, top=2, floor=0.04)
    torch.testing.assert_close(found, torch.tensor([0.01, 0.01, 0.01 + 0.96 * 3 / 7, 0.01 + 0.96 * 4 / 7]))
    torch.testing.assert_close(of_one(answer([0.1, 0.2, 0.3, 0.4]), 4, top=9), torch.tensor([0.1, 0.2, 0.3, 0.4]))


@pytest.mark.parametrize("top", [None, 3])
def test_a_service_may_name_the_likeliest_alone(top: int | None) -> None:
    def ask(ids: Tensor, mask: Tensor) -> TopProbabilities:
        return TopProbabilities(torch.tensor([[3, 1]]), torch.tensor([[0.45, 0.15]], dtype=torch.float64))

    torch.testing.assert_close(of_one(ask, 4, top=top, floor=0.04), torch.tensor([0.01, 0.25, 0.01, 0.73]))
    torch.testing.assert_close(of_one(ask, 4, top=1, floor=0.04), torch.tensor([0.01, 0.01, 0.01, 0.97]))


def top_of(tokens: list[list[int]], probabilities: list[list[float]]) -> NextToken:
    return lambda ids, mask: TopProbabilities(torch.tensor(tokens), torch.tensor(probabilities))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (answer([0.5, 0.5]), r"shape \(1, 3\), not \(1, 2\)"),
        (answer([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]), r"shape \(1, 3\), not \(2, 3\)"),
        (answer([0.5, math.nan, 0.5]), "finite and not negative"),
        (answer([0.5, math.inf, 0.5]), "finite and not negative"),
        (answer([0.6, -0.1, 0.5]), "finite and not negative"),
        (answer([0.5, 0.3, 0.21]), "at most 1, not to 1.01"),
        (answer([0.0, 0.0, 0.0]), "more than 0 and at most 1, not to 0"),
        (top_of([[0, 1]], [[0.5, 0.6]]), "at most 1, not to 1.1"),
        (top_of([[0, 3]], [[0.5, 0.4]]), r"in \[0, 3\), each once"),
        (top_of([[-1, 2]], [[0.5, 0.4]]), r"in \[0, 3\), each once"),
        (top_of([[2, 2]], [[0.5, 0.4]]), r"in \[0, 3\), each once"),
        (top_of([[0, 1]], [[0.5]]), r"\(1, 2\) and probabilities \(1, 1\) should both be \(1, k\)"),
        (top_of([[0], [1]], [[0.5], [0.5]]), r"should both be \(1, k\)"),
        (top_of([[]], [[]]), "more than 0"),
    ],
)
def test_what_are_no_probabilities_is_refused(function: NextToken, message: str) -> None:
    with pytest.raises(ValueError, match=f"^expert terse: .*{message}"):
        of_one(function, 3)
