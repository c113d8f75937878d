"""What an aligned run's reward says of responses: those of a file are scored and ranked, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedalign.data.corpus_cells import text_cell
from fedalign.data.corpus_rows import continuing
from fedalign.data.messages import is_messages, prompt_text
from fedalign.data.table import parse_json_cell, read_table, suffix_of
from fedalign.errors import UserError
from fedalign.methods.corpus import CorpusPhase
from fedalign.methods.dprlhf import DPRLHF
from fedalign.methods.policy_writer import Written
from fedalign.methods.preference_scores import RewardModelPhase
from fedalign.methods.text_evaluation import Scores, reward_scores
from fedalign.opened_run import OpenedRun


@dataclass(frozen=True)
class RewardPrediction:
    """Responses to one prompt, the best one first.

    Parameters
    ----------
    question : str
        The prompt.
    options : tuple of str
        The responses.
    shares : tuple of float
        Their rewards, falling. Under a learnt reward one response is preferred to another with the probability
        sigmoid(difference of their rewards).
    """

    titles: ClassVar[tuple[str, str, str]] = ("prompt", "response", "reward")

    question: str
    options: tuple[str, ...]
    shares: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the ranking as plain data."""
        return {"prompt": self.question, "responses": list(self.options), "rewards": list(self.shares)}


def predict_rewards(run: OpenedRun, responses: Path) -> list[RewardPrediction]:
    """Rank responses by the run's reward.

    Parameters
    ----------
    run : OpenedRun
        Of private alignment by reinforcement learning.
    responses : Path
        Rows with ``prompt``, a text or a conversation, and ``responses``, a list of texts (JSONL, CSV or Parquet).

    Raises
    ------
    UserError
        If the file is malformed or empty, or the run has no reward.
    """
    scores = scores_of(run)
    found = []
    for prompt, options in _rows(responses):
        rewards = scores([prompt] * len(options), _tokens(run, prompt, options)).tolist()
        ranked = sorted(zip(options, rewards, strict=True), key=lambda pair: -pair[1])
        found.append(RewardPrediction(prompt, *zip(*ranked, strict=True)))
    if not found:
        raise UserError(f"{responses}: holds no row; write rows with prompt and responses")
    return found


def scores_of(run: OpenedRun) -> Scores:
    """Return what the run's reward model has learnt, or the reward that the run was given.

    Raises
    ------
    UserError
        If it has neither.
    """
    method = run.config.method
    assert isinstance(method, DPRLHF)
    phase = next((p for p in run.phases if isinstance(p, RewardModelPhase) and p.name in run.states), None)
    if phase is not None:
        phase.load(run.states[phase.name])
        return _learnt(phase)
    if method.reward is None:
        raise UserError(
            f"{run.path}: this run has no reward, method.reward and method.reward_model are null; train a reward "
            "model with method=dprlhf_preferences"
        )
    method.reward.prepare()
    return reward_scores(method.reward)


def _learnt(phase: RewardModelPhase) -> Scores:
    network = phase.network

    @torch.inference_mode()
    def scores(prompts: object, written: Written) -> Tensor:
        tokens = written.tokens
        return network.scores(tokens.ids.to(network.device), tokens.attention_mask.to(network.device)).cpu()

    return scores


def _tokens(run: OpenedRun, prompt: str, options: tuple[str, ...]) -> Written:
    """Return responses as training met them."""
    phase = next(phase for phase in run.phases if isinstance(phase, CorpusPhase))
    continued = [continuing(prompt, option) for option in options]
    lengths = phase.lengths
    batch = phase.codec.continuations([prompt] * len(options), continued, lengths.prompt, lengths.response)
    return Written(batch, continued)


def _rows(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield prompts and the responses to them."""
    text_cells = suffix_of(path) == ".csv"
    for where, record in read_table(path, ("prompt", "responses")):
        prompt, responses = record["prompt"], record["responses"]
        if text_cells:
            responses = parse_json_cell(responses, where, "responses")
        if not isinstance(responses, list | tuple) or not responses:
            raise UserError(f"{where}: 'responses' holds {str(responses)[:40]!r}; it must be a list of texts")
        options = tuple(text_cell(response, where, "responses") for response in responses)
        if not all(option.strip() for option in options):
            raise UserError(f"{where}: 'responses' holds an empty text; leave it out")
        told = prompt_text(prompt, where, "prompt") if is_messages(prompt) else text_cell(prompt, where, "prompt")
        yield told, options
