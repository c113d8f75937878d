"""What type a new annotator is of, told by a few of its judgments, and which responses it would find best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedalign.config import RunConfig
from fedalign.contribution import State
from fedalign.data.embed import EmbeddingCache, default_cache_directory, embed
from fedalign.data.progress import terminal_bar
from fedalign.data.ranking_data import RankingData, question_of
from fedalign.data.ranking_rows import RankingRow, clean_rankings
from fedalign.data.rankings import Annotator, Ranking, RankingClient, RankingShard, RankingSource, Role
from fedalign.data.rankings_file import parse_ranking_row
from fedalign.data.table import parse_json_cell, read_table, suffix_of
from fedalign.errors import UserError
from fedalign.methods.em import EMPhase
from fedalign.methods.mmra import MIXTURE, MixturePhase
from fedalign.methods.ranking_phase import RankingPhase
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import PRIOR, all_utilities
from fedalign.opened_run import OpenedRun

_ANNOTATOR = "the new annotator"


@dataclass(frozen=True)
class TypeShares:
    """How likely an annotator is of each type.

    Parameters
    ----------
    question : str
        What it is told by.
    shares : tuple of float, length K
        Sum to 1.
    """

    titles: ClassVar[tuple[str, str, str]] = ("told by", "type", "probability")

    question: str
    shares: tuple[float, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """The types' names."""
        return tuple(type_name(number) for number in range(len(self.shares)))

    def to_json(self) -> dict[str, Any]:
        """Return the shares as plain data."""
        return {"told_by": self.question, "types": list(self.options), "probabilities": list(self.shares)}


@dataclass(frozen=True)
class MenuPrediction:
    """How likely an annotator finds each response of a menu best.

    Parameters
    ----------
    question : str
        The prompt.
    options : tuple of str, length S
        The responses, the likeliest first.
    shares : tuple of float, length S
        Their probabilities, falling; sum to 1.
    """

    titles: ClassVar[tuple[str, str, str]] = ("prompt", "response", "probability of being best")

    question: str
    options: tuple[str, ...]
    shares: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain data."""
        return {"prompt": self.question, "responses": list(self.options), "probabilities": list(self.shares)}


@dataclass(frozen=True)
class TypedRun:
    """A run that told types apart.

    Parameters
    ----------
    config : RunConfig
    phase : RankingPhase
        The one whose final state holds the types.
    state : State
    weights : Tensor, shape (K,)
        Chances of the types for somebody of whom nothing is known.
    fair : bool
        Whether the run made a mixture for everybody, which these are then; else they are the types' shares.
    """

    config: RunConfig
    phase: RankingPhase
    state: State
    weights: Tensor
    fair: bool

    @classmethod
    def of(cls, run: OpenedRun) -> TypedRun:
        """Return the types of a run of EM-DPO, and how it mixes them."""
        (phase,) = (p for p in run.phases if isinstance(p, RankingPhase) and p.name == EMPhase.name)
        state = run.states[phase.name]
        fair = MixturePhase.name in run.states
        weights = run.states[MixturePhase.name][MIXTURE] if fair else state[PRIOR]
        return cls(run.config, phase, state, weights, fair)

    def posterior(self, shard: RankingShard) -> Tensor:
        """Return how likely the shard's one annotator is of each type, float64 of shape (K,); nothing is trained."""
        if not len(shard.train):
            return self.weights.double()
        return self.phase.posteriors(self.state, shard, shard.train)[:, 0]

    def told_by(self, shard: RankingShard) -> str:
        """Say what the posterior is told by."""
        if not len(shard.train):
            return f"no judgment: {'the mixture for everybody' if self.fair else 'shares of the annotators'}"
        return f"{len(shard.train)} judgment{'s' if len(shard.train) > 1 else ''}"


def type_name(number: int) -> str:
    """Return what type ``number`` is called."""
    return f"type-{number}"


def predict_rankings(run: OpenedRun, judgments: Path) -> list[TypeShares | MenuPrediction]:
    """Predict which response of each open menu an annotator finds best.

    Parameters
    ----------
    run : OpenedRun
        Of EM-DPO or one of its baselines.
    judgments : Path
        One annotator's file of rankings (JSONL, CSV or Parquet; see ``RankingsFile``). Rows with ranks are what it has
        judged; rows without, or with nothing but nulls there, are asked. Without a judgment the types are as likely as
        the run's mixture for everybody has them, or as their shares of the annotators.

    Returns
    -------
    list
        First the types' probabilities, then ``sum_k g_k softmax(u_k)`` of each menu.

    Raises
    ------
    UserError
        If the file is malformed or empty, or its responses are not what the run's types can read.
    """
    typed = TypedRun.of(run)
    known, asked = read_annotator(judgments)
    shard = shard_of(typed, known, asked)
    with torch.inference_mode():
        posterior = typed.posterior(shard)
        utilities = all_utilities(typed.phase.model, typed.state, shard, shard.test)
    best = torch.softmax(utilities.double().masked_fill(shard.tiers[shard.test] < 0, -torch.inf), 2)
    menus = [
        _ranked(menu, shares[: len(menu.responses)])
        for menu, shares in zip(asked, torch.einsum("k,kns->ns", posterior, best).tolist(), strict=True)
    ]
    return [TypeShares(typed.told_by(shard), tuple(posterior.tolist())), *menus]


def read_annotator(path: Path) -> tuple[list[Ranking], list[Ranking]]:
    """Return what an annotator has judged, and the menus that it is asked about, in which all responses tie.

    Raises
    ------
    UserError
        If the file is malformed or empty, holds judgments of several annotators, or none that is usable.
    """
    text_cells = suffix_of(path) == ".csv"
    known: list[RankingRow] = []
    asked: list[Ranking] = []
    for where, record in read_table(path, ("prompt", "responses")):
        row = parse_ranking_row(_with_ranks(record, where, text_cells), where, text_cells)
        if any(rank is not None for rank in row.ranks):
            known.append(replace(row, split="train"))
        else:
            asked.append(_menu(row, where))
    people = sorted({row.annotator for row in known if row.annotator is not None})
    if len(people) > 1:
        raise UserError(f"{path}: judgments of {len(people)} annotators, {', '.join(people[:3])}; give a file of one")
    if not known and not asked:
        raise UserError(f"{path}: holds no row; write rows with prompt, responses and, of what was judged, ranks")
    return (list(clean_rankings(known, 0.0).rankings) if known else []), asked


def shard_of(typed: TypedRun, known: Sequence[Ranking], asked: Sequence[Ranking]) -> RankingShard:
    """Return one annotator's shard: ``train`` is what it judged, ``test`` what it is asked.

    Raises
    ------
    UserError
        If responses are not what the run's types can read.
    """
    rankings = [*known, *asked]
    person = Annotator(_ANNOTATOR, None, tuple(rankings))
    holder = RankingClient(_ANNOTATOR, Role.UNSEEN, (person,))
    return RankingData({_ANNOTATOR: holder}, {_ANNOTATOR: _vectors(typed, rankings)}, (), {}, ()).shard(_ANNOTATOR)


def _vectors(typed: TypedRun, rankings: Sequence[Ranking]) -> Sequence[Tensor]:
    """Return each ranking's responses as the run's types read them, shape (S, dim)."""
    if isinstance(typed.phase.model, AdapterTypes):
        # A language model reads texts.
        return [torch.zeros(len(ranking.responses), 0) for ranking in rankings]
    source, encoder = typed.config.data, typed.config.encoder
    assert isinstance(source, RankingSource)
    try:
        own = source.vectors(rankings)
    except ValueError:
        own = []
    if own is None:
        questions = [question_of(ranking, source.prompt_tail) for ranking in rankings]
        encoded = embed(questions, encoder, EmbeddingCache(default_cache_directory()), terminal_bar)
        return [encoded[question.id].float() for question in questions]
    if not own or any(vectors.shape[1] != encoder.dim for vectors in own):
        raise UserError(
            f"this run was trained on vectors, data={source.name}: every response must spell one of {encoder.dim} "
            f"numbers, such as {' '.join(['+0.5'] * min(encoder.dim, 3))}{' ...' if encoder.dim > 3 else ''}"
        )
    return own


def _with_ranks(record: Mapping[str, object], where: str, text_cells: bool) -> Mapping[str, object]:
    """Return a record with a null for every response where it has no ranks."""
    if record.get("ranks") not in (None, "", []):
        return record
    responses = record["responses"]
    if text_cells:
        responses = parse_json_cell(responses, where, "responses")
    nulls = [None] * len(responses) if isinstance(responses, list | tuple) else []
    return {**record, "ranks": json.dumps(nulls) if text_cells else nulls}


def _menu(row: RankingRow, where: str) -> Ranking:
    """Return a menu that is asked about."""
    texts = [response.strip() for response in row.responses]
    if not row.prompt.strip() or not all(texts) or len(set(texts)) < len(texts):
        raise UserError(f"{where}: prompt or a response is empty, or two responses are the same")
    return Ranking(row.prompt, row.responses, (0,) * len(row.responses), "test", row.group)


def _ranked(menu: Ranking, shares: Sequence[float]) -> MenuPrediction:
    order = sorted(range(len(shares)), key=lambda place: -shares[place])
    responses = tuple(menu.responses[place] for place in order)
    return MenuPrediction(menu.prompt, responses, tuple(shares[place] for place in order))
