"""Stage 2: a language model that learns to follow latents, by DPO on responses of its own that the selector labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedalign.contribution import WEIGHT, Contribution, State, mean_delta, weighted_delta
from fedalign.data.pairs import Judgments, PairShard, Role
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory, Phase, ServerOptimizer, Setting
from fedalign.methods.latent_labels import PairLogits, label_pairs
from fedalign.methods.latents import GROUP_MEAN, LatentsPhase
from fedalign.methods.local_training import load_parameters, train, trainable
from fedalign.methods.policy_evaluation import FOLLOW, Preferences, follow_sums
from fedalign.methods.policy_training import Lesson, PolicyTraining, draw_prompts, encode_responses, lesson_loss
from fedalign.methods.policy_writer import PolicyWriter
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import TextCodec
from fedalign.models.variational import VariationalSpec
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.selector import SelectorPhase

KEY = "method.policy"
_SELECTOR = "selector/"
_FACTOR = "latent_factor"
_AVERAGE = "average"
_LONGEST = 1.5
"""Longest latent that a policy is told, as a multiple of the groups' average."""


class PolicyPhase(Phase[PairShard]):
    """Federated DPO of a policy under latents. Prompts and responses never leave the client."""

    name = "policy"

    def __init__(self, settings: PolicyTraining, selector: SelectorPhase, setting: Setting) -> None:
        assert isinstance(setting.model, VariationalSpec)
        self.rounds, self.settings, self.selector = settings.rounds, settings, selector
        self.client_weight = selector.client_weight
        self._encoder = setting.encoder
        self._latent = setting.model.latent if settings.condition else 0
        # The workspace that states are loaded into; its own weights mean nothing.
        self.network = self._build(Streams(0))
        codec = TextCodec(settings.policy.model, f"{KEY}.policy")
        self.writer = PolicyWriter(self.network, codec, settings.max_prompt_tokens, settings.max_new_tokens)
        limit, longest = self.network.max_tokens, settings.max_prompt_tokens + settings.max_new_tokens
        if limit is not None and longest > limit:
            raise UserError(
                f"{KEY}.max_prompt_tokens={settings.max_prompt_tokens} and {KEY}.max_new_tokens="
                f"{settings.max_new_tokens}: {longest} tokens together, and the model reads {limit}; lower them"
            )

    def check(self, shard: PairShard) -> None:
        """Refuse people of a group that the judge does not know."""
        for judgments in shard.people:
            self.settings.evaluation.judge.scores(judgments.group, [], [], [])

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return a fresh adapter, the trained selector, which stays as it is, and the groups' mean latents."""
        fresh = {name: p.detach().cpu() for name, p in trainable(self._build(Streams(streams.seed))).items()}
        learnt = artefacts[self.selector.name]
        frozen = {_SELECTOR + name: learnt[name] for name in trainable(self.selector.network)}
        means = {name: t for name, t in artefacts[LatentsPhase.name].items() if name.startswith(GROUP_MEAN)}
        stacked = torch.stack(list(means.values()))
        # Every group counts once, so that two groups' latents and labels are each other's opposite.
        middle = stacked.mean(0) if len(stacked) > 1 else torch.zeros_like(stacked[0])
        length = (stacked - middle).norm(dim=1).mean().clamp(min=1e-6)
        average = {_AVERAGE: middle}
        return {**fresh, **frozen, **means, **average, _FACTOR: self.settings.latent_scale / length}

    def template(self, state: State) -> Template:
        """Return a delta for every tensor of the adapter."""
        return Template.of_deltas(trainable(self.network))

    def local(self, state: State, shard: PairShard, streams: Streams, memory: Memory) -> Contribution:
        """Write responses to the client's prompts, label them under its preferences, and train on the pairs."""
        generator = streams.torch("responses")
        self.load(state)
        lesson, possible = self._lesson(state, shard, generator)
        pairs = len(lesson.labelled.prompt)
        sums = {"policy_pairs": (float(pairs), float(possible))}
        change = Contribution()
        if pairs:
            loss, right = self._train(state, lesson, streams, generator, memory)
            after = {name: p.detach().cpu() for name, p in trainable(self.network).items()}
            before = {name: state[name] for name in after}
            change = weighted_delta(before, after, self.selector.method.client_weight(shard))
            sums |= {"policy_loss": (loss, 1.0), "policy_accuracy": (right, 1.0)}
        metrics = [
            MetricSum(f"train/{name}", judgments.group, *value)
            for judgments in shard.people
            for name, value in sums.items()
        ]
        return Contribution(change.tensors, {**change.scalars, **encode(metrics)})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after one server step; as it was if nobody found a pair to learn from."""
        if not total.scalars.get(WEIGHT):
            return state
        if self.settings.server == "optimizer":
            return super().update(state, total, optimizer)
        return {**state, **{name: state[name] + delta.to(state[name]) for name, delta in mean_delta(total).items()}}

    def evaluate(self, state: State, shard: PairShard, streams: Streams) -> Contribution:
        """Return how responses to held-out prompts follow each group's preference and the people's own."""
        evaluation = self.settings.evaluation
        if not evaluation.takes(shard.client, streams.seed):
            return Contribution()
        self.load(state)
        population = "unseen" if shard.role is Role.UNSEEN else "test"
        groups = {group: self.told(state, mean) for group, mean in group_means(state).items()}
        sums: list[MetricSum] = []
        for judgments in shard.people:
            prompts = [judgments.prompts[i] for i in judgments.test[: evaluation.prompts].tolist()]
            if prompts:
                # The same draws in every round, engine and arm of a seed.
                generator = Streams(streams.seed).torch(f"evaluation/policy/{judgments.person}")
                own = self.told(state, self.own_latent(judgments))
                wanted = Preferences(groups, judgments.group, own)
                sums += follow_sums(self.writer, evaluation, prompts, wanted, generator)
        return Contribution(scalars=encode([MetricSum(f"{population}/{s.name}", s.group, s.total, s.n) for s in sums]))

    def export(self, state: State, directory: Path) -> None:
        """Write the adapter as peft reads it, and beside it how the policy is told of a preference, if it is.

        ``projection.safetensors`` holds the weight and bias that make of a latent what is added to input embeddings (or
        put before them), and the latent of each group as it is told.
        """
        self.load(state)
        self.network.transformer.save_adapter(directory / "adapter")
        if self.network.projection is not None:
            told = {name: self.told(state, mean) for name, mean in group_means(state).items()}
            tensors = {n: p.detach().cpu().contiguous() for n, p in self.network.projection.named_parameters()}
            tensors |= {f"group/{name}": latent.contiguous() for name, latent in told.items()}
            save_file(tensors, directory / "adapter" / "projection.safetensors")

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over groups of each metric, and how well the worst group is followed."""
        values = super().summarise(sums, tensors)
        for population in ("test", "unseen"):
            scored = [item.total / item.n for item in sums if item.name == f"{population}/{FOLLOW}"]
            if scored:
                values[f"{population}/{FOLLOW}_worst"] = min(scored)
        return values

    def load(self, state: State) -> None:
        """Put policy and selector into their workspaces."""
        load_parameters(self.network, state)
        self.network.eval()
        self.selector.load({n.removeprefix(_SELECTOR): t for n, t in state.items() if n.startswith(_SELECTOR)})

    def own_latent(self, judgments: Judgments) -> Tensor:
        """Return the latent that a person's training judgments speak for, shape (d,); the state must be loaded."""
        with torch.no_grad():
            mean, _ = self.selector.posterior(judgments, judgments.train[: self.selector.evaluation.context])
        return mean[0]

    def told(self, state: State, latents: Tensor) -> Tensor:
        """Return latents, shape (..., d), as the policy is told them: from the middle of the groups, and scaled.

        What is much longer than a group's mean is shortened: a few judgments that all say the same can be answered
        with a latent far beyond those that the policy has met.
        """
        scaled = (latents - state[_AVERAGE]) * state[_FACTOR]
        longest = _LONGEST * self.settings.latent_scale
        lengths: Tensor = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
        return scaled * (longest / lengths.clamp(min=1e-12)).clamp(max=1)

    def _build(self, streams: Streams) -> ConditionalPolicy:
        with streams.torch_default("policy/initial"):
            return self.settings.policy.build(self._latent, f"{KEY}.policy")

    def _train(
        self, state: State, lesson: Lesson, streams: Streams, generator: torch.Generator, memory: Memory
    ) -> tuple[float, float]:
        """Train the workspace policy on a lesson; returns the mean loss and the share of pairs it had right."""
        local, right = self.settings.local, []
        # On the policy's own device, where the proximal term needs it.
        start = {name: state[name].to(self.network.device) for name in trainable(self.network)}

        def loss(step: int) -> Tensor:
            value, share = lesson_loss(self.writer, lesson, self.settings, generator)
            right.append(share)
            return value

        with streams.torch_default("dropout"):
            self.network.train()
            before = local.steps * (streams.round - 1)
            mean = train(self.network, start, loss, local, before, local.steps * self.rounds, memory)
        return mean, sum(right) / len(right)

    def _lesson(self, state: State, shard: PairShard, generator: torch.Generator) -> tuple[Lesson, int]:
        """Return a round's responses and what the client's preferences make of them, and the most pairs possible."""
        settings, count = self.settings, self.settings.completions
        groups = list(group_means(state).values()) if settings.preferences == "all" else []
        known = {judgments.person: torch.stack([self.own_latent(judgments), *groups]) for judgments in shard.people}
        prompts, latents = draw_prompts(shard.people, known, settings.prompts, generator)
        told = self.told(state, latents) if settings.condition else None
        z = None
        if told is not None:
            # Who a response is written for is drawn, so that every preference meets what others would like.
            place = torch.randint(latents.shape[1], (len(prompts), count), generator=generator)
            z = told[torch.arange(len(prompts))[:, None], place].flatten(0, 1)
        repeated = [prompt for prompt in prompts for _ in range(count)]
        reference = settings.sample_from == "reference"
        written = self.writer.write(repeated, z, settings.temperature, generator, reference)
        features = encode_responses(self._encoder, repeated, written.texts, shard.prompt_tail)
        with torch.no_grad():
            odds = self._odds(state)
            labelled = label_pairs(features.view(len(prompts), count, -1), latents, odds, settings.margin)
        lesson = Lesson(written, self.writer.reference_log_probability(written.tokens), told, labelled)
        return lesson, latents.shape[0] * latents.shape[1]

    def _odds(self, state: State) -> PairLogits:
        """Return what labels pairs: the selector's log odds, less a part of those of the average person."""
        logits, share = self.selector.network.reward.logits, 1 - self.settings.shared
        return lambda one, other, z: logits(one, other, z) - share * logits(one, other, state[_AVERAGE].expand_as(z))


def group_means(state: State) -> dict[str, Tensor]:
    """Return the mean latent of each group, in the order of their names."""
    found = {name.removeprefix(GROUP_MEAN): t for name, t in state.items() if name.startswith(GROUP_MEAN)}
    return dict(sorted(found.items()))
