"""A language model as the judge: every pair is asked in both orders, and what cannot be read is said so."""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.methods.judges import Judge, Verdicts, known_preference
from fedalign.pretrained import Dtype, load_network, load_tokenizer

_FIELDS = ("criterion", "prompt", "a", "b")

# The letter alone, after a few words of introduction, or before a punctuation mark and an explanation; never the
# article of a sentence such as "A good reply would be ...".
_ANSWER = re.compile(
    r"\W*(?:(?i:the|my|better|best|answer|response|reply|option|choice|is)\W+)*([AB])(?:\W*$|\s*[.:,;)\]*-])"
)


class Ask(ABC):
    """Something that answers a prompt; one subclass a way to do so, a frozen dataclass."""

    @abstractmethod
    def ask(self, prompt: str) -> str:
        """Return the answer."""


@dataclass(frozen=True)
class LocalModel(Ask):
    """A causal language model of transformers, decoding greedily, with its chat template where it has one.

    Parameters
    ----------
    model : str
        Hub name or local folder.
    max_new_tokens : int
        Length of an answer at most.
    dtype : "float32", "bfloat16" or "float16"
    device : str
        PyTorch device, e.g. ``cpu`` or ``cuda``.
    """

    model: str
    max_new_tokens: Annotated[int, Field(ge=1)]
    dtype: Dtype
    device: str

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM

        folder = model_folder(self.model, "judge.ask.model")
        tokenizer = load_tokenizer(folder, "judge.ask.model")
        return tokenizer, load_network(folder, AutoModelForCausalLM, self.dtype, self.device, "judge.ask.model")

    def ask(self, prompt: str) -> str:
        """Return the answer.

        Raises
        ------
        UserError
            If the model cannot be had, or prompt and answer are longer than it can read.
        """
        tokenizer, network = self._loaded
        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        # The template writes the special tokens itself.
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        ids, mask = inputs["input_ids"].to(network.device), inputs["attention_mask"].to(network.device)
        limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and ids.shape[1] + self.max_new_tokens > limit:
            raise UserError(
                f"judge.ask.model={self.model}: reads {limit} tokens, and a question has {ids.shape[1]}; "
                "shorten the responses or choose another model"
            )
        with torch.inference_mode():
            answer = network.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        text: str = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        return text


@dataclass(frozen=True)
class LLMJudge(Judge):
    """Asks which of two responses, A or B, is better.

    Parameters
    ----------
    ask : Ask
    template : str
        The question; names ``{criterion}``, ``{prompt}``, ``{a}`` and ``{b}``, and asks for a single letter.
    criteria : dict from str to str
        What each preference means, in words.

    Raises
    ------
    UserError
        If the template lacks one of its four fields or names another.
    """

    ask: Ask
    template: str
    criteria: dict[str, str]

    def __post_init__(self) -> None:
        """Check the template's fields."""
        names = set(re.findall(r"{(\w*)}", self.template))
        if names != set(_FIELDS):
            raise UserError(f"judge.template: must name {{{'}, {'.join(_FIELDS)}}} and nothing else in braces")

    def scores(self, preference: str, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """Return 1 or 0 where both orders agree, 1/2 where the answer follows the position, NaN if one is unclear."""
        criterion = known_preference(preference, self.criteria)
        values = []
        for prompt, a, b in zip(prompts, first, second, strict=True):
            straight = letter(self.ask.ask(self._question(criterion, prompt, a, b)))
            swapped = letter(self.ask.ask(self._question(criterion, prompt, b, a)))
            readable = straight is not None and swapped is not None
            values.append(((straight == "A") + (swapped == "B")) / 2 if readable else float("nan"))
        return Verdicts(torch.tensor(values, dtype=torch.float64))

    def _question(self, criterion: str, prompt: str, a: str, b: str) -> str:
        # One pass, so that braces in a response stay what they are.
        values = {"criterion": criterion, "prompt": prompt, "a": a, "b": b}
        return re.sub(r"{(\w+)}", lambda match: values[match[1]], self.template)


def letter(answer: str) -> str | None:
    """Return A or B if that is what an answer begins with, or says in a few words; None if it is unclear."""
    found = _ANSWER.match(answer.strip())
    return found[1] if found else None
