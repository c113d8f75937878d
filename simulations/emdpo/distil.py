"""One adapter in place of a finished run's mixture: distilled by the product's own phase on public prompts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from fedalign.data.review_texts import review_prompts
from fedalign.methods.distillation import Distilled, DistilledPhase
from fedalign.methods.fairness import MinMaxRegret
from fedalign.methods.local_training import LocalTraining
from fedalign.methods.mmra import MIXTURE, MixturePhase
from fedalign.methods.text_policies import AdapterPolicy, Writing
from fedalign.methods.type_model import PRIOR
from fedalign.rng import Streams
from simulations.emdpo.finished import Finished

PROMPTS = 256
"""Public prompts that the mixture continues anew in every round, none of which is scored."""
ROUNDS, BATCH = 8, 32
LOCAL = LocalTraining(
    steps=24,
    optimizer="adam",
    lr=0.002,
    schedule="cosine",
    period=1,
    final_lr=0.1,
    optimizer_state="persist",
    proximal_mu=0.0,
    max_grad_norm=1.0,
)
"""Of the server, which works alone: with public prompts a round is one fresh set of texts."""


def distilled_policy(run: Finished, weights: Tensor, scored: Collection[str], writing: Writing) -> AdapterPolicy:
    """Return one adapter that has learnt to write as a mixture of the run's types does.

    Parameters
    ----------
    run : Finished
        Its types are adapters of a language model.
    weights : Tensor, shape (K,)
        Of the types' policies.
    scored : collection of str
        Prompts that are not to be learnt from.
    writing : Writing
        How the mixture writes.
    """
    fairness = MinMaxRegret(
        basis="answers", prompts=None, client_prompts=1, writing=writing, weights=None, normalise=False
    )
    mixture = MixturePhase(run.phase.method, run.phase, fairness)
    mixed = {**run.state, MIXTURE: weights.to(run.state[PRIOR])}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("\n".join(public_prompts(scored)))
        settings = Distilled(
            rounds=ROUNDS, prompts=str(file), client_prompts=1, writing=writing, batch=BATCH, local=LOCAL
        )
        phase = DistilledPhase(settings, mixture)
        state = phase.initial(Streams(run.config.seed), {mixture.name: mixed})
    return phase.policy(state)


def public_prompts(scored: Collection[str]) -> list[str]:
    """Return prompts of the world, the same for all runs, without those that are scored."""
    drawn = review_prompts(PROMPTS + len(scored), Streams(0).numpy("distillation"))
    return [prompt for prompt in drawn if prompt not in scored][:PROMPTS]
