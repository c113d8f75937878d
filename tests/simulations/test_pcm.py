"""The experiment on PCM: arms differ in what they say, the oracle knows words, and the README is what was recorded."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.config import RunConfig, parse, resolve
from fedalign.data.pair_vocabulary import (
    CRITICISM,
    ORNATE_ADVERBS,
    ORNATE_CONNECTIVES,
    PLAIN_ADVERBS,
    PLAIN_CONNECTIVES,
    PRAISE,
)
from fedalign.data.stated_reviews import StatedReviews
from fedalign.methods.control_learning import Offline, Online
from fedalign.methods.control_phase import Controlled
from fedalign.methods.expert_training import TrainedExperts
from fedalign.methods.loaded_experts import AdapterExperts
from fedalign.methods.pcm import PCM
from fedalign.methods.prompted import Prompted
from fedalign.methods.stated_preference import Preferences
from fedalign.models.control_constant import ConstantSpec
from fedalign.models.experts import Pairs
from fedalign.models.mixing import Linear
from fedalign.models.text import TextCodec
from simulations.pcm.arms import ARMS, BASE, EXPERTS, HELD_OUT, MAIN, SIDES, overrides
from simulations.pcm.base import public_texts
from simulations.pcm.oracle import Oracle, wrong_tokens
from simulations.pcm.results import LABELS, ORACLE, TABLES, tables
from simulations.pcm.score import KEPT, SeedResult, by_combination, from_json
from simulations.pcm.wins import win_rate
from simulations.records import between_marks, to_json
from tests.language_models import WORDS, random_model

FOLDER = Path(__file__).resolve().parents[2] / "simulations" / "pcm"


@pytest.fixture(scope="module")
def configs() -> dict[str, RunConfig]:
    folders = {BASE: "base", EXPERTS: "experts"}
    return {arm.name: parse(resolve([*overrides(arm, folders)])) for arm in ARMS}


def method(config: RunConfig) -> PCM:
    assert isinstance(config.method, PCM)
    return config.method


def control(config: RunConfig) -> Controlled:
    merging = method(config).merging
    assert isinstance(merging, Controlled)
    return merging


# Arms.


def test_arms_share_the_world_the_model_and_the_sides(configs: dict[str, RunConfig]) -> None:
    assert len(configs) == len(ARMS) == len({arm.label for arm in ARMS})
    assert len({config.data for config in configs.values()}) == 1
    assert len({config.model for config in configs.values()}) == 1
    for config in configs.values():
        own = method(config)
        assert set(Preferences(own.dimensions).names) == set(SIDES)
        assert own.dimensions == method(configs["uniform"]).dimensions
        assert (own.lengths, own.evaluation) == (
            method(configs["uniform"]).lengths,
            method(configs["uniform"]).evaluation,
        )
    data = configs["uniform"].data
    assert isinstance(data, StatedReviews)
    assert tuple(data.held_out) == HELD_OUT


def test_the_first_arm_trains_the_experts_that_all_others_load(configs: dict[str, RunConfig]) -> None:
    trains = [name for name, config in configs.items() if isinstance(method(config).experts, TrainedExperts)]
    assert trains == [ARMS[0].name] == ["soups"]
    for name, config in configs.items():
        source = method(config).experts
        if name != "soups":
            assert isinstance(source, AdapterExperts)
            assert source.paths == {side: f"experts/{side}" for side in SIDES}


def test_pcm_arms_differ_in_what_their_names_say(configs: dict[str, RunConfig]) -> None:
    federated = configs["federated"]
    assert isinstance(control(federated).learning, Offline)
    constant = configs["constant"]
    assert isinstance(control(constant).control, ConstantSpec)
    assert replace(control(constant), control=control(federated).control) == control(federated)
    assert (constant.federation, constant.partition) == (federated.federation, federated.partition)
    # One client computes as many gradients of pairs a round as all clients of a round together.
    own = control(federated)
    size = federated.federation.sampler.size  # type: ignore[attr-defined]
    central, small = control(configs["central"]), control(configs["central_small"])
    assert replace(central, batch=own.batch) == own
    assert replace(small, local=replace(small.local, steps=own.local.steps)) == own
    assert central.batch * central.local.steps == small.batch * small.local.steps == size * own.batch * own.local.steps
    for name in ("central", "central_small"):
        assert configs[name].federation.rounds == federated.federation.rounds
    assert control(configs["uniform"]).rounds == 0
    alone, covered = (control(configs[name]).learning for name in ("online_own", "online"))
    assert isinstance(alone, Online) and isinstance(covered, Online)
    assert (alone.coverage.share, covered.coverage.share) == (0.0, 0.5)
    assert replace(alone, coverage=covered.coverage) == covered


def test_what_is_prompted_was_trained_as_long_as_all_experts(configs: dict[str, RunConfig]) -> None:
    prompted, experts = method(configs["prompted"]).merging, method(configs["soups"]).experts
    assert isinstance(prompted, Prompted) and prompted.training is not None
    assert isinstance(experts, TrainedExperts)
    assert prompted.training.rounds == experts.rounds
    assert prompted.training.local.steps == len(SIDES) * experts.local.steps
    assert prompted.training.local.lr == experts.local.lr
    assert isinstance(method(configs["prompting"]).merging, Prompted)
    assert method(configs["prompting"]).merging.training is None  # type: ignore[attr-defined]


def test_every_main_arm_has_a_label_and_those_of_few_seeds_are_apart() -> None:
    assert set(ARM_NAMES) - set(MAIN) == {"central_small", "online", "online_own"}
    assert set(LABELS) == {*ARM_NAMES, ORACLE}


ARM_NAMES = tuple(arm.name for arm in ARMS)


def test_the_base_has_read_texts_of_all_sides_and_of_no_run_s_world() -> None:
    texts = public_texts()
    assert len(set(texts)) == len(texts) > 500
    everything = " ".join(text for _, text in texts)
    for words in (PRAISE, CRITICISM, ORNATE_ADVERBS, PLAIN_ADVERBS):
        assert any(word in everything for word in words)


# What is recorded.


def test_means_are_over_combinations_by_whether_somebody_stated_them() -> None:
    groups = {
        "praise, ornate, short": {"unseen/reward": 0.2, "unseen/satisfied": 1.0, "unseen/length": 9.0},
        # The other one that is held out, its sides in another order.
        "plain, long, criticism": {"unseen/reward": 0.4, "unseen/satisfied": 0.0},
        "praise, plain, long": {"unseen/reward": 0.9, "unseen/satisfied": 0.5},
        "praise, plain": {"unseen/reward": 0.0},
        "praise": {"unseen/test_nll": 3.0},
    }
    assert by_combination(groups) == {
        "all/reward": 0.5,
        "all/satisfied": 0.5,
        "trained/reward": 0.9,
        "trained/satisfied": 0.5,
        "held_out/reward": pytest.approx(0.3),
        "held_out/satisfied": 0.5,
    }


def test_a_metric_that_some_combinations_lack_is_a_mean_of_the_others() -> None:
    groups = {"praise, plain, long": {"unseen/weight_entropy": 0.5}, "praise, plain, short": {"unseen/reward": 1.0}}
    found = by_combination(groups)
    assert found["trained/weight_entropy"] == 0.5 and found["trained/reward"] == 1.0
    assert not any(name.startswith("held_out/") for name in found)


# The oracle.


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextCodec, dict[str, int]]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    lists = (PRAISE, CRITICISM, ORNATE_ADVERBS, ORNATE_CONNECTIVES, PLAIN_ADVERBS, PLAIN_CONNECTIVES)
    words = ["<end>", "<unk>", ";", ".", "film", *{part for each in lists for word in each for part in word.split()}]
    places = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(places, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = random_model("gpt2", tmp_path_factory.mktemp("tokenizer"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>", pad_token="<end>")
    fast.save_pretrained(folder)
    return TextCodec(str(folder), "model"), places


def test_what_goes_wrong_is_the_other_side_s_words(codec: tuple[TextCodec, dict[str, int]]) -> None:
    reader, places = codec
    names = ("long", "short", "plain", "ornate", "praise", "criticism")
    found = wrong_tokens(names, reader, len(places))
    rows = dict(zip(names, found, strict=True))

    def begun(words: tuple[str, ...]) -> set[int]:
        return {places[word.split()[0]] for word in words}

    praise, criticism = begun(PRAISE), begun(CRITICISM)
    assert set(rows["praise"].nonzero()[:, 0].tolist()) == criticism - praise
    assert set(rows["criticism"].nonzero()[:, 0].tolist()) == praise - criticism
    ornate = begun((*ORNATE_ADVERBS, *ORNATE_CONNECTIVES))
    plain = begun((*PLAIN_ADVERBS, *PLAIN_CONNECTIVES))
    assert set(rows["plain"].nonzero()[:, 0].tolist()) == ornate - plain
    assert set(rows["ornate"].nonzero()[:, 0].tolist()) == plain - ornate
    assert rows["short"].nonzero()[:, 0].tolist() == [places[";"]]
    assert rows["long"].nonzero()[:, 0].tolist() == [places["."]]
    assert not found[:, places["film"]].any()
    turned = wrong_tokens(names[::-1], reader, len(places))
    assert torch.equal(turned, found.flip(0))


def test_a_token_that_begins_words_of_both_sides_tells_nothing(tmp_path: Path) -> None:
    """The random models know two words of criticism and one plain one; all others are one unknown word to them."""
    found = wrong_tokens(SIDES, TextCodec(str(random_model("gpt2", tmp_path)), "model"), len(WORDS))
    rows = {side: [WORDS[i] for i in row.nonzero()[:, 0].tolist()] for side, row in zip(SIDES, found, strict=True)}
    assert rows["praise"] == ["bad", "dull"] and rows["criticism"] == []
    assert rows["ornate"] == ["very"] and rows["plain"] == []


# Three experts over four tokens, of which the first two want; token 0 is wrong to the first, token 1 to the second.
WRONG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
ACTIVE = torch.tensor([[True, True, False]])


def written(*rows: list[float], active: Tensor = ACTIVE) -> Tensor:
    weights = torch.where(active, 0.0, -torch.inf).log_softmax(1)
    found = Oracle(WRONG).next_token(weights, torch.tensor(rows).log(), Pairs.of(active))
    return found.exp()[0]


def test_the_oracle_takes_the_wanted_expert_that_is_least_in_danger() -> None:
    first, second = [0.3, 0.3, 0.2, 0.2], [0.05, 0.1, 0.45, 0.4]
    assert written(first, second).tolist() == pytest.approx(second)
    assert written(second, first).tolist() == pytest.approx(second)
    # What only an unwanted expert's side minds is no danger.
    assert written([0.005, 0.004, 0.9, 0.091], first).tolist() == pytest.approx([0.005, 0.004, 0.9, 0.091])


def test_the_oracle_weighs_all_wanted_experts_alike_where_none_is_in_danger() -> None:
    first, second = [0.004, 0.004, 0.5, 0.492], [0.001, 0.001, 0.098, 0.9]
    expected = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert written(first, second).tolist() == pytest.approx(expected)
    third = torch.tensor([[True, True, True]])
    assert written(first, second, [0.0001, 0.0001, 0.0001, 0.9997], active=third).sum() == pytest.approx(1.0)


def test_the_oracle_trains_as_a_linear_mixture_does() -> None:
    assert isinstance(Oracle(WRONG), Linear)
    assert not Oracle(WRONG).needs_whole


# Tables.


def result(reward: float, **scores: float) -> SeedResult:
    own = {f"{part}/{name}": reward for part in ("all", "trained", "held_out") for name in KEPT}
    known: dict[str, Any] = {"seconds": 1.0, "worth": [reward, 1.0, 2.0]}
    return SeedResult({**own, "all/base_nll": math.log(8.0), **scores}, **known)


def test_tables_hold_means_differences_and_wins_by_hand() -> None:
    found = {
        "uniform": {0: result(0.5), 1: result(0.7), 2: result(0.6)},
        "federated": {0: result(0.8), 1: result(0.9), 2: result(0.7)},
        "soups": {0: result(0.8)},
    }
    text = tables(found)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    uniform = lines[f"{LABELS['uniform']}, 3 seeds"]
    # Student's t of 2 degrees of freedom is 4.303; the deviation is 0.1.
    assert uniform.count("0.600 ± 0.248") == 8
    assert "8.000" in uniform
    assert "0.800" in lines[f"{LABELS['soups']}, 1 seeds"]
    assert f"{LABELS['central']}, " not in text
    # Differences of 0.3, 0.2 and 0.1.
    assert text.count("+0.200 ± 0.248") == 3
    # Of three prompts a seed the first is won and the others are ties: (1 + 1/2 + 1/2) / 3.
    assert "0.667" in text.split("ties counting half")[1]
    assert "66.28 %" in text


def test_results_without_a_shared_seed_have_no_difference() -> None:
    text = tables({"uniform": {0: result(0.5)}, "federated": {1: result(0.8)}})
    assert "+" not in text.split("paired by seed")[1].split("**")[1]


def test_wins_are_over_prompts_of_shared_seeds() -> None:
    worth = {"a": {0: [1.0, 2.0, 3.0], 1: [5.0]}, "b": {0: [0.0, 2.0, 4.0], 2: [1.0]}}
    found = win_rate(worth, "a", "b")
    assert found is not None
    assert (found.mean, found.n) == (0.5, 3)
    assert win_rate(worth, "a", "c") is None
    assert win_rate({"a": {0: [1.0]}, "b": {1: [0.0]}}, "a", "b") is None


def test_results_survive_their_file() -> None:
    found = {"federated": {0: result(0.5), 3: result(0.25)}, ORACLE: {0: result(1.0)}}
    assert from_json(to_json(found)) == found


def test_readme_and_tables_are_those_of_the_recorded_results() -> None:
    record = FOLDER / "results" / "results.json"
    text = tables(from_json(record.read_text()))
    assert (FOLDER / "results" / "table.md").read_text() == text
    readme = (FOLDER / "README.md").read_text()
    assert between_marks(readme, TABLES, text) == readme
