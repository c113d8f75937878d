"""Reinforcement learning of a language model on clients: responses to users' prompts, their rewards, PPO's steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.corpus import REWARD, RL, SFT, CorpusShard, Example
from fedalign.methods.base import Artefacts, ServerOptimizer, Setting
from fedalign.methods.corpus import Batches, CorpusPhase
from fedalign.methods.policy_gradient import Rollouts
from fedalign.methods.policy_writer import Written
from fedalign.methods.reuse import Drawn, Reuse
from fedalign.methods.rl_training import KEY, RLTraining, check_rl
from fedalign.methods.rollouts import uniform, write
from fedalign.methods.text_evaluation import Scores, TextScorer, by_group, reward_scores
from fedalign.methods.text_units import RowLosses
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.language_model import ValuedPolicy
from fedalign.models.text import ResponseBatch
from fedalign.objectives.ppo import token_log_probabilities
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.dprlhf import DPRLHF

_REFERENCE, _REWARD = "reference/", "reward/"
_COEFFICIENT = "kl_coefficient"


class RLPhase(CorpusPhase):
    """Federated policy gradient. Prompts and responses never leave the client.

    Where clients add noise to gradients, every step draws responses of its own to the prompts of its batch and learns
    from them once; the loss of a prompt depends on that prompt alone.
    """

    name = RL
    stage = RL

    def __init__(self, method: DPRLHF, settings: RLTraining, setting: Setting) -> None:
        super().__init__(settings, KEY, method.lengths, setting)
        self._settings, self._algorithm, self._reward = settings, settings.algorithm, method.reward
        check_rl(settings, method.reward, setting)
        self.check_rows(self._algorithm.responses)
        self.scored_by(method.reward, method.evaluation.judge)
        self.network.head.requires_grad_(self._algorithm.learns_values)
        self._reference = self.fresh(Streams(0))
        self._judge = self.fresh(Streams(0)) if method.reward is None else None
        self._scorer = TextScorer(method.evaluation, self.network.policy, self.codec, method.lengths)
        self.bounded_metrics = self._scorer.bounded_metrics

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the fine-tuned policy, the same once more as reference, and the reward model where there is one."""
        start = self.start(streams, artefacts, [SFT])
        state = {**start, **{_REFERENCE + name: tensor.clone() for name, tensor in start.items()}}
        if self._algorithm.learns_values:
            state |= {name: torch.zeros_like(p.detach()).cpu() for name, p in self._head()}
        if self._judge is not None:
            learnt = artefacts.get(REWARD, {**start, **{name: p.detach().cpu() for name, p in self._head()}})
            state |= {_REWARD + name: tensor for name, tensor in learnt.items()}
        if self._settings.adaptive is not None:
            state[_COEFFICIENT] = torch.tensor(self._settings.beta)
        return state

    def load(self, state: State) -> None:
        """Put policy, reference and reward model into their workspaces."""
        super().load(state)
        _load(self._reference, _part(state, _REFERENCE))
        if self._judge is not None:
            _load(self._judge, _part(state, _REWARD))

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after one server step, with the weight of the divergence that follows from it."""
        stepped = super().update(state, total, optimizer)
        if self._settings.adaptive is None:
            return stepped
        return {**stepped, _COEFFICIENT: self._settings.adaptive.next(state[_COEFFICIENT], total)}

    def row_losses(self, state: State) -> RowLosses:
        """Return the loss of each prompt: responses are drawn, rewarded and learnt from once."""

        def losses(examples: Sequence[Example], seeds: Sequence[int]) -> Tensor:
            written, reference, scores = self._write(examples, seeds)
            log_probs, values = self._forward(written.tokens)
            # At the parameters that drew the responses, ratios are 1.
            rollouts = self._rollouts(written.tokens, log_probs.detach(), reference, values.detach(), scores)
            targets = self._algorithm.targets(rollouts, self._beta(state))
            return self._by_prompt(self._algorithm.losses(log_probs, values, rollouts, targets))

        return losses

    def step_loss(self, state: State, batches: Batches, told: list[MetricSum]) -> Callable[[int], Tensor]:
        """Return the mean loss of each step; the responses of a batch serve several steps as the algorithm says."""
        algorithm, beta = self._algorithm, self._beta(state)

        def drawn() -> Drawn[Rollouts]:
            examples, seeds = batches.draw()
            return Drawn(self._kept_rollouts(examples, seeds, told), len(examples), seeds[0])

        reuse = Reuse(algorithm, drawn)

        def loss(step: int) -> Tensor:
            rollouts, rows = reuse.next()
            targets = algorithm.targets(rollouts, beta)
            part = rollouts.rows(rows)
            log_probs, values = self._forward(part.tokens)
            return algorithm.losses(log_probs, values, part, targets.rows(rows)).mean()

        return loss

    @torch.no_grad()
    def evaluate(self, state: State, shard: CorpusShard, streams: Streams) -> Contribution:
        """Return how good the responses to test prompts are, and how far the policy is from its reference."""
        self.load(state)
        examples = self._scorer.chosen(shard)
        if not examples:
            return Contribution()
        sums, moments = self._scorer.evaluate(
            examples, shard.client, streams.seed, self._scores(), self._reference.policy
        )
        return Contribution(moments, encode(sums))

    def _head(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.network.head.named_parameters(prefix="head"))

    def _beta(self, state: State) -> float:
        return float(state[_COEFFICIENT]) if self._settings.adaptive is not None else self._settings.beta

    def _scores(self) -> Scores:
        """Return the reward."""
        if self._reward is not None:
            return reward_scores(self._reward)
        judge = self._judge
        assert judge is not None
        return lambda prompts, written: judge.scores(written.tokens.ids, written.tokens.attention_mask)

    @torch.no_grad()
    def _write(self, examples: Sequence[Example], seeds: Sequence[int]) -> tuple[Written, Tensor, Tensor]:
        """Return responses to prompts, how likely the reference finds them, and their rewards."""
        count = self._algorithm.responses
        prompts = [example.prompt for example in examples for _ in range(count)]
        draws = uniform(seeds, self.lengths.response, count)
        written = write(self.network.policy, self.codec, self.lengths, prompts, draws, self._settings.temperature)
        tokens = written.tokens
        logits = self._reference.policy(tokens.ids, tokens.attention_mask, None)
        scores = self._scores()(prompts, written).to(tokens.ids.device) * self._settings.reward_scale
        return written, self._of_response(logits, tokens), scores

    def _forward(self, tokens: ResponseBatch) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of the responses' tokens and the values before them, each of shape (B, S)."""
        logits, values = self.network(tokens.ids, tokens.attention_mask)
        return self._of_response(logits, tokens), values[:, self.lengths.prompt - 1 : -1]

    def _of_response(self, logits: Tensor, tokens: ResponseBatch) -> Tensor:
        """Return log-probabilities of the responses' tokens, shape (B, S), at the temperature that draws them."""
        start = self.lengths.prompt - 1
        ids, mask = tokens.ids[:, start:], tokens.response_mask[:, start:]
        return token_log_probabilities(logits[:, start:] / self._settings.temperature, ids, mask)

    def _rollouts(
        self, tokens: ResponseBatch, log_probs: Tensor, reference: Tensor, values: Tensor, scores: Tensor
    ) -> Rollouts:
        mask = tokens.response_mask[:, self.lengths.prompt :]
        return Rollouts(tokens, mask, log_probs, reference, values, scores)

    @torch.no_grad()
    def _kept_rollouts(self, examples: Sequence[Example], seeds: Sequence[int], told: list[MetricSum]) -> Rollouts:
        """Return responses to a batch of prompts, and tell what they are worth."""
        written, reference, scores = self._write(examples, seeds)
        self.network.eval()
        log_probs, values = self._forward(written.tokens)
        self.network.train()
        rollouts = self._rollouts(written.tokens, log_probs, reference, values, scores)
        groups = [example.group for example in examples for _ in range(self._algorithm.responses)]
        told += by_group("train/reward", groups, scores / self._settings.reward_scale)
        told += by_group("train/kl", groups, ((log_probs - reference) * rollouts.mask).sum(1))
        return rollouts

    def _by_prompt(self, losses: Tensor) -> Tensor:
        return losses.view(-1, self._algorithm.responses).mean(1)


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _load(network: ValuedPolicy, state: State) -> None:
    network.load_adapter(state)
    with torch.no_grad():
        for name, parameter in network.head.named_parameters(prefix="head"):
            if name in state:
                parameter.copy_(state[name])
    network.eval()
