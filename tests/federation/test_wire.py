"""What leaves a site: every message of whole runs is searched for the texts, ids and names of the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.federation.messages import DESCRIBE, EVALUATE, TRAIN
from fedalign.run import start
from tests.language_models import random_model
from tests.tiny import use_cache
from tests.tiny_alignment import ALIGNMENT
from tests.tiny_pcm import CONTROL, PCM

from .wire import Wire, tapped

CANARY, PERSON, GROUP = "canary song", "person-of-", "group-of-"
Row = dict[str, Any]

WORLD = ("federation.rounds=2", "federation.evaluate_every=1", "encoder=hashing", "encoder.size=16")
LOCAL = ("method.local.steps=2", "model.width=8")
NETWORK = ("model.layers=1", "model.heads=2", "method.episode.min_questions=2", "method.episode.max_questions=4")


TOPICS = ("tea", "milk", "rain", "snow", "bread", "jam", "trains", "boats", "hills", "lakes", "kites")


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wire:
    use_cache(tmp_path, monkeypatch)
    return tapped(monkeypatch)


def survey() -> list[Row]:
    return [
        {
            "group": f"{GROUP}{g}",
            "question": f"{CANARY} about {topic}?",
            "options": [f"{CANARY} yes", f"{CANARY} no"],
            "distribution": [0.1 + 0.1 * ((g + place) % 7), 0.9 - 0.1 * ((g + place) % 7)],
        }
        for g in range(5)
        for place, topic in enumerate(
            ["tea", "milk", "rain", "snow", "bread", "jam", "trains", "boats", "hills", "lakes", "kites"]
        )
    ]


def pairs() -> list[Row]:
    return [
        {
            "prompt": f"{CANARY} asks {n}",
            "chosen": f"{CANARY} sings {n} {'loud' if p % 2 else 'low'}",
            "rejected": f"{CANARY} hums {n}",
            "annotator": f"{PERSON}{p}",
            "group": f"{GROUP}{p % 2}",
            "split": "test" if n > 9 else "train",
        }
        for p in range(5)
        for n in range(13)
    ]


def rankings() -> list[Row]:
    return [
        {
            "prompt": f"{CANARY} asks {n}",
            "responses": [f"{CANARY} sings {n}", f"{CANARY} hums {n}", f"{CANARY} whistles {n}"],
            "ranks": [1 + p % 2, 2 - p % 2, 3],
            "annotator": f"{PERSON}{p}",
            "group": f"{GROUP}{p % 2}",
            "split": "test" if n > 9 else "train",
        }
        for p in range(5)
        for n in range(13)
    ]


def texts() -> list[Row]:
    return [
        {
            "prompt": f"the film {CANARY} {n}",
            "response": f"was good and bright {n}",
            "user": f"{PERSON}{p}",
            "group": f"{GROUP}{p % 2}",
            "split": "test" if n > 3 else "train",
        }
        for p in range(8)
        for n in range(5)
    ]


SELECTOR = (
    *WORLD,
    *LOCAL,
    "method=fedvpa",
    "method.collect_latents=false",
    "data=pairs_file",
    "partition=by_annotator",
    "partition.unseen=1",
    "model.latent=2",
    "model.body.width=8",
    "method.prototypes=null",
    "method.episodes.count=1",
    "method.episodes.min_context=2",
    "method.episodes.max_context=4",
    "method.episodes.targets=2",
    "method.evaluation.context=4",
    "method.evaluation.draws=1",
)
TYPES = (
    *WORLD, "data=rankings_file", "partition=annotators", "partition.unseen=1", "model=linear_utility",
    "method.local.steps=2", "method.batch=2",
)  # fmt: skip
EM = ("method=emdpo", "method/start=random", "method/fair=none", "method.types=2")
SURVEY = (
    *WORLD, *LOCAL, *NETWORK, "data=survey_file", "partition.unseen=2", "partition.min_questions=5",
    "method.evaluation.draws=1", "method.evaluation.context_questions=3",
)  # fmt: skip


def run(folder: Path, rows: Sequence[Row], *overrides: str) -> None:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start([*overrides, f"data.path={path}", f"output={folder / 'run'}"])


QUICK = {"pluralllm": (survey, SURVEY), "fedvpa": (pairs, SELECTOR)}
SLOW = {
    "dpo": (rankings, (*TYPES, "method=dpo")),
    "emdpo": (rankings, (*TYPES, *EM)),
    "fedvpa_sums": (pairs, (*SELECTOR, "method=fedvpa_sums")),
    "secure": (survey, (*SURVEY, "privacy=secure_sum", "privacy.secure.minimum=3", "method.prior=none")),
}
CASES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", CASES)
def test_no_message_holds_a_text_and_names_stand_where_they_are_meant_to(tmp_path: Path, wire: Wire, name: str) -> None:
    make, overrides = {**QUICK, **SLOW}[name]
    run(tmp_path, make(), *overrides)
    assert {sent.kind for sent in wire.sent} >= {DESCRIBE, TRAIN}
    assert wire.holding(CANARY) == set()
    # Clients are annotators here, or groups: their names are what a node says of itself.
    clients = GROUP if make is survey else PERSON
    assert f"{DESCRIBE} reply" in wire.holding(clients)
    assert {f"{kind} order" for kind in (TRAIN, EVALUATE)} & wire.holding(clients)
    # Groups that are no clients stand in the names of metrics alone.
    if make is not survey:
        assert wire.holding(GROUP) == {f"{TRAIN} reply", f"{EVALUATE} reply"} & wire.holding(GROUP)


def test_where_a_site_pools_its_people_they_are_not_named(tmp_path: Path, wire: Wire) -> None:
    run(tmp_path, pairs(), *SELECTOR, "partition.pooled=true", "partition.unseen=0", "method=fedvpa_sums")
    assert wire.holding(CANARY) == set()
    assert wire.holding(PERSON) == set()


def test_latents_name_people_to_everybody(tmp_path: Path, wire: Wire) -> None:
    """The one phase that reports by person: a diagnosis that is asked for, and refused under a guarantee."""
    run(tmp_path, pairs(), *SELECTOR, "method.collect_latents=true")
    named = f"latent/{GROUP}0/{PERSON}"
    assert wire.holding(named) == {f"{TRAIN} reply", f"{EVALUATE} order"}
    assert wire.holding(CANARY) == set()


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["users", "silos"])
def test_language_models_send_no_texts_and_no_tokens_of_them(tmp_path: Path, wire: Wire, partition: str) -> None:
    model = random_model("gpt2", tmp_path / "model")
    small = [o for o in ALIGNMENT if not o.startswith("data.")]
    more = ["data=texts_file", f"partition={partition}", "partition.unseen=2"]
    if partition == "silos":
        more += ["partition.clients=2", "federation.sampler.size=1"]
    run(tmp_path, texts(), "method=dprlhf", *small, *more, f"model.model={model}")
    assert wire.holding(CANARY) == set()
    assert (wire.holding(PERSON) == set()) is (partition == "silos")
    assert not any(_run_of(sent.tokens, _tokens(model, "was good and bright")) for sent in wire.sent)


@pytest.mark.slow
def test_merged_experts_send_no_texts(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedalign.config import parse, resolve
    from fedalign.rng import Streams

    model = random_model("gpt2", tmp_path / "model")
    overrides = ["method=pcm", *PCM, *CONTROL, f"model.model={model}"]
    start([*overrides, f"output={tmp_path / 'run'}"])
    source: Any = parse(resolve(overrides)).data
    corpus = source.load(Streams(0))
    long = {example.response.strip() for example in corpus.examples if len(example.response) > 30}
    assert long
    assert not {text for text in long if wire.holding(text)}
    assert not any(_run_of(sent.tokens, _tokens(model, text)) for text in list(long)[:5] for sent in wire.sent)


def _tokens(model: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    tokens: list[int] = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    return tokens


def _run_of(values: Sequence[int], wanted: Sequence[int]) -> bool:
    length = len(wanted)
    return any(list(values[place : place + length]) == list(wanted) for place in range(len(values) - length + 1))


def test_the_search_finds_what_is_there(tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that quotes a text is found: the inspector can fail."""
    from fedalign.methods.pluralllm import GPOPhase

    def talks(*given: Any) -> Any:
        raise ValueError(f"cannot read {CANARY}")

    monkeypatch.setattr(GPOPhase, "evaluate", talks)
    with pytest.raises(Exception, match=CANARY):
        run(tmp_path, survey(), *SURVEY)
    assert wire.holding(CANARY) == {f"{EVALUATE} reply"}
