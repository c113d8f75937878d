"""A language model that answers survey questions: how likely each option is as a response, and steps on rewards."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.schema import Question
from fedalign.errors import UserError
from fedalign.methods.local_training import LocalTraining, train, trainable
from fedalign.methods.option_reader import OptionReader
from fedalign.methods.public_questions import PublicQuestions
from fedalign.models.language_model import LanguageModelSpec, ValuedPolicy
from fedalign.models.text import TextCodec
from fedalign.objectives.advantages import Baseline, group_advantages
from fedalign.objectives.gpo_nll import segment_log_softmax
from fedalign.objectives.ppo import clipped_policy_loss
from fedalign.rng import Streams

KEY = "method.policy"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BATCH = 64
"""Questions read at once where nothing is learnt."""


@dataclass(frozen=True)
class OptionPolicySpec:
    """Settings of the policy and of its training; the ``policy`` block of the method.

    Parameters
    ----------
    model : LanguageModelSpec
    rounds : int
        Rounds of the policy's phase; 0 scores the policy as it starts.
    prompt : str
        What the model reads; ``{question}`` and, if it stands there, ``{options}`` are put in.
    response : {"text", "letter"}
        Whether an option is answered by its words or by its letter.
    length_normalised : bool
        Whether an option's log-probability is divided by its number of tokens, so that long ones are not unlikely.
    max_prompt_tokens, max_new_tokens : int
        A longer prompt loses its beginning, a longer response its end.
    questions : int
        How many questions are asked in a round.
    samples : int
        How many options are drawn for each, with replacement.
    baseline : {"rloo", "grpo"}
        What the reward of a drawn option is compared with.
    clip : float
        PPO's bound on the ratio of probabilities.
    kl : float
        Weight of the divergence KL(policy || reference) over a question's options, against rewards.
    training : LocalTraining
        Steps of a round, on the server.
    """

    model: LanguageModelSpec
    rounds: Annotated[int, Field(ge=0)]
    prompt: str
    response: Literal["text", "letter"]
    length_normalised: bool
    max_prompt_tokens: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    questions: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=2)]
    baseline: Baseline
    clip: Annotated[float, Field(gt=0)]
    kl: Annotated[float, Field(ge=0)]
    training: LocalTraining

    def __post_init__(self) -> None:
        """Check that a prompt asks something, and what a letter stands for."""
        if "{question}" not in self.prompt:
            raise UserError(f"{KEY}.prompt={self.prompt!r} has no {{question}}; put it where the question belongs")
        if self.response == "letter" and "{options}" not in self.prompt:
            raise UserError(f"{KEY}.response=letter: {KEY}.prompt must show {{options}}, or letters mean nothing")

    def text(self, question: Question) -> str:
        """Return the prompt of a question."""
        lettered = [f"{_letter(i)}. {option}" for i, option in enumerate(question.options)]
        shown = lettered if self.response == "letter" else question.options
        return self.prompt.replace("{options}", "\n".join(shown)).replace("{question}", question.text)

    def responses(self, question: Question) -> list[str]:
        """Return what stands for each option."""
        chosen = [_letter(i) if self.response == "letter" else option for i, option in enumerate(question.options)]
        return [f" {response}" for response in chosen]


@dataclass(frozen=True)
class Batch:
    """What a round's steps learn from: N questions with k drawn options each.

    Parameters
    ----------
    questions : int64 Tensor, shape (N,)
    options : int64 Tensor, shape (N, k)
    rewards : float Tensor, shape (N, k)
    """

    questions: Tensor
    options: Tensor
    rewards: Tensor


class OptionPolicy:
    """The policy over the options of public questions. The network is built when it is first asked: on the server.

    Parameters
    ----------
    spec : OptionPolicySpec
    public : PublicQuestions
    """

    def __init__(self, spec: OptionPolicySpec, public: PublicQuestions) -> None:
        self.spec, self.public = spec, public

    @functools.cached_property
    def network(self) -> ValuedPolicy:
        """The workspace that states are loaded into; its own weights mean nothing."""
        return self.fresh(Streams(0))

    @functools.cached_property
    def _reader(self) -> OptionReader:
        texts = [(self.spec.text(q), self.spec.responses(q)) for q in self.public.questions]
        codec = TextCodec(self.spec.model.model, f"{KEY}.model")
        widths = self.spec.max_prompt_tokens, self.spec.max_new_tokens
        return OptionReader(codec, texts, *widths, self.spec.length_normalised)

    def fresh(self, streams: Streams) -> ValuedPolicy:
        """Return a new network, whose adapter changes nothing yet."""
        with streams.torch_default("policy/initial"):
            return self.spec.model.build(f"{KEY}.model")

    def log_probabilities(self, state: State, reference: bool = False) -> Tensor:
        """Return the log-probability of every option among its question's, shape (P,), of the policy or its origin."""
        self.network.load_adapter(state)
        self.network.eval()
        questions = torch.arange(len(self.public.questions))
        with torch.no_grad():
            return torch.cat([self._among(batch, reference)[0] for batch in torch.split(questions, _BATCH)])

    def improve(
        self, state: State, batch: Batch, old: Tensor, reference: Tensor, streams: Streams, memory: dict[str, Tensor]
    ) -> float:
        """Take a round's steps from ``state``; the network holds the result.

        Parameters
        ----------
        state : State
            The adapter.
        batch : Batch
        old, reference : Tensor, shape (P,)
            Log-probabilities of all options when the batch was drawn, and under the frozen model.
        streams : Streams
            At the server's place in the round.
        memory : dict
            The optimiser's moments; read and written.

        Returns
        -------
        float
            Mean loss over the steps.
        """
        training, advantages = self.spec.training, group_advantages(batch.rewards, self.spec.baseline)
        self.network.load_adapter(state)
        self.network.train()
        policy = self.network.policy
        prefixed = {name: state[f"policy.{name}"].to(self.network.device) for name in trainable(policy)}
        with streams.torch_default("dropout"):
            before = training.steps * (streams.round - 1)
            return train(
                policy, prefixed, lambda _: self._loss(batch, advantages, old, reference), training,
                before, training.steps * self.spec.rounds, memory,
            )  # fmt: skip

    def adapter(self) -> State:
        """Return the workspace's adapter as tensors of its own."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.adapter().items()}

    def _loss(self, batch: Batch, advantages: Tensor, old: Tensor, reference: Tensor) -> Tensor:
        """Return PPO's clipped loss of the drawn options, and the exact divergence from the frozen model."""
        now, rows, starts = self._among(batch.questions, False)
        drawn = (starts[:, None] + batch.options).flatten()
        taken = now[drawn][:, None], old[rows][drawn][:, None], advantages.flatten()[:, None]
        loss = clipped_policy_loss(*taken, torch.ones(len(drawn), 1), self.spec.clip).mean()
        divergence = (now.exp() * (now - reference[rows])).sum() / len(batch.questions)
        return loss + self.spec.kl * divergence

    def _among(self, questions: Tensor, reference: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities of all options of some questions, their points, and where each question's begin."""
        scores, rows = self._reader.read(self.network.policy, questions, reference)
        sizes = self.public.offsets.diff()[questions]
        segments = torch.repeat_interleave(torch.arange(len(questions)), sizes)
        return segment_log_softmax(scores, segments, len(questions)), rows, sizes.cumsum(0) - sizes


def _letter(option: int) -> str:
    """Return the letter of an option; a number beyond the alphabet."""
    return _LETTERS[option] if option < len(_LETTERS) else str(option + 1)
