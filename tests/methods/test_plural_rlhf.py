"""Plural RLHF: what travels, how groups score, that the policy learns what is rewarded, and that runs repeat."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fedalign.contribution import Contribution, State, total
from fedalign.data.federated import Role
from fedalign.data.schema import GroupJudgments, SurveyShard
from fedalign.errors import UserError
from fedalign.federation.observer import RoundReport
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.group_rewards import COUNT, REWARDS, Rollouts, contribution_of, rewards_of, score, with_asked
from fedalign.methods.option_policy import OptionPolicySpec
from fedalign.methods.option_reader import OptionReader
from fedalign.methods.plural_policy import PluralPolicyPhase
from fedalign.methods.public_questions import PublicQuestions, Table, read_questions
from fedalign.metrics.alignment import jensen_shannon_distance
from fedalign.metrics.record import decode
from fedalign.models.text import TextCodec
from fedalign.objectives.dpo import sequence_log_probability
from fedalign.objectives.reward_aggregation import AdaptiveAlpha, MaxRewards, MinRewards
from fedalign.predict import predict
from fedalign.report.metrics_log import MetricsLog
from fedalign.rng import Streams
from fedalign.run import resume, start
from fedalign.run_end import Result
from tests.language_models import policy, random_model, shake
from tests.methods.plural_world import ENCODER, QUESTIONS, TRAINING, group, method, phase, setting, spec, survey_rows
from tests.methods.surveys import shard

STEPPER = FedAvg(lr=1.0).build()
EVER = 2.0
"""A threshold that no fairness index reaches."""
ASKED = 27
"""Of 36 questions, with a quarter held out."""

BANDIT: dict[str, Any] = {
    "public": QUESTIONS[:3], "held_out": 0.0, "questions": 3, "samples": 8, "length_normalised": True,
}  # fmt: skip
"""Three questions that are asked in every round; lengths are taken out, so that no option is too rare to be drawn."""

Reward = Callable[[str, int, int], float]
"""Group, question, option."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDALIGN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def begin(one: PluralPolicyPhase, seed: int = 0) -> State:
    """Return the state before the first round, on an untrained predictor."""
    artefacts: dict[str, State] = {}
    for earlier in one.method.phases(setting())[:-1]:
        artefacts[earlier.name] = earlier.initial(Streams(seed, earlier.name), artefacts)
    return one.initial(Streams(seed, one.name), artefacts)


def rewarded(state: State, reward: Reward, groups: tuple[str, ...] = ("a",)) -> Contribution:
    """Return what clients would add up whose rewards are known."""
    drawn, questions = Rollouts.from_state(state).options, state["server.questions"].tolist()
    return contribution_of(
        {
            group: torch.tensor(
                [[reward(group, q, o) for o in row] for q, row in zip(questions, drawn.tolist(), strict=True)]
            )
            for group in groups
        }
    )


def train(one: PluralPolicyPhase, reward: Reward, rounds: int, groups: tuple[str, ...] = ("a",)) -> State:
    state = begin(one)
    for _ in range(rounds):
        state = one.update(state, rewarded(state, reward, groups), STEPPER)
    return state


def answers(state: State) -> list[Tensor]:
    """Return the policy's answer distribution to every question."""
    return list(torch.split(state["answers.log_probabilities"].exp(), state["answers.offsets"].diff().tolist()))


# The policy over options


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("normalised", [False, True])
def test_an_option_is_as_likely_as_its_text_read_by_itself(
    folder: Path, tmp_path: Path, kind: str, normalised: bool
) -> None:
    """Reading a question once for all of its options changes nothing, to the gradient."""
    network = policy(random_model(kind, tmp_path), latent=0)
    shake(network)
    network.eval()
    codec = TextCodec(str(folder), "key")
    texts = [(question.text, [f" {option}" for option in question.options]) for question in QUESTIONS[:5]]
    chosen = torch.tensor([3, 1])
    for reference in (False, True):
        got, rows = OptionReader(codec, texts, 8, 4, normalised).read(network, chosen, reference)
        pairs = [(texts[q][0], response) for q in chosen.tolist() for response in texts[q][1]]
        batch = codec.responses([p for p, _ in pairs], [r for _, r in pairs], 20)
        logits = network.reference(batch.ids, batch.attention_mask)
        if not reference:
            logits = network(batch.ids, batch.attention_mask, None)
        expected = sequence_log_probability(logits, batch.ids, batch.response_mask)
        expected = expected / batch.response_mask.sum(1) if normalised else expected
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        first = sum(len(q.options) for q in QUESTIONS[:3])
        assert rows.tolist()[: len(texts[3][1])] == list(range(first, first + len(texts[3][1])))
        if not reference:
            one, other = (torch.autograd.grad(v.sum(), _trained(network), retain_graph=True) for v in (got, expected))
            for a, b in zip(one, other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def _trained(network: torch.nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def test_the_policy_finds_the_best_answers(folder: Path) -> None:
    """A bandit for each question with a known best arm, which is the first option of even questions, else the last."""
    one = phase(folder, **BANDIT)

    def best(question: int) -> int:
        return 0 if question % 2 == 0 else len(QUESTIONS[question].options) - 1

    state = train(one, lambda _, q, o: float(o == best(q)), 60)
    chosen = [float(shares[best(question)]) for question, shares in enumerate(answers(state))]
    assert min(chosen) > 0.9


def test_a_strong_pull_keeps_the_policy_at_its_origin(folder: Path) -> None:
    """Under weight b a gain in reward, at most 1, is not worth a divergence above 1 / b."""

    def divergence(kl: float) -> float:
        training = replace(TRAINING, lr=0.003)
        state = train(phase(folder, **BANDIT, kl=kl, training=training), lambda _, q, o: float(o == 0), 15)
        now, reference = state["answers.log_probabilities"], state["answers.reference"]
        return float((now.exp() * (now - reference)).sum()) / 3

    assert divergence(0.0) > 0.1
    assert divergence(100.0) < 0.01


@pytest.mark.slow
def test_the_best_policy_under_a_pull_is_the_tilted_reference(folder: Path) -> None:
    """The maximum of reward less b times the divergence is reference * exp(reward / b), normalised."""
    training = replace(TRAINING, schedule="cosine", final_lr=0.05)
    one = phase(folder, **{**BANDIT, "samples": 32}, kl=0.5, rounds=60, training=training)
    state = train(one, lambda _, q, o: float(o == q % 2), 60)
    reference = torch.split(state["answers.reference"], state["answers.offsets"].diff().tolist())
    found, before = [], []
    for question, shares in enumerate(answers(state)):
        tilt = torch.tensor([float(option == question % 2) / 0.5 for option in range(len(shares))])
        target = (reference[question] + tilt).softmax(0)
        found.append(float((shares - target).abs().sum()) / 2)
        before.append(float((reference[question].exp() - target).abs().sum()) / 2)
    assert max(found) < 0.1
    assert min(before) > 0.3


@pytest.mark.slow
def test_the_aggregation_decides_whom_the_policy_pleases(folder: Path) -> None:
    """Two groups like the first option much, one likes the last; all can live with the second."""
    likes = {"a": (0.8, 0.4, 0.0), "b": (0.8, 0.4, 0.0), "c": (0.0, 0.4, 1.0)}

    def reward(name: str, question: int, option: int) -> float:
        return likes[name][option] if question == 0 else 0.5

    def favoured(**changes: Any) -> int:
        state = train(phase(folder, **BANDIT, **changes), reward, 25, ("a", "b", "c"))
        return int(answers(state)[0].argmax())

    assert len(QUESTIONS[0].options) == 3
    assert favoured() == 0
    assert favoured(aggregation=MinRewards()) == 1
    assert favoured(aggregation=MaxRewards()) == 2


def test_the_adaptive_weights_serve_the_group_that_fares_badly(folder: Path) -> None:
    """Two of three groups want one option, the third another: the mean follows the two, the weights share."""

    def reward(name: str, question: int, option: int) -> float:
        return float(option == 0) if name in ("a", "b") else float(option == 1)

    def worst(**changes: Any) -> float:
        state = train(phase(folder, **BANDIT, **changes), reward, 20, ("a", "b", "c"))
        return min(float(torch.stack([shares[option] for shares in answers(state)]).mean()) for option in (0, 1))

    assert worst() < 0.15
    assert worst(aggregation=AdaptiveAlpha(0.1, 0.5, 0.9, "weighted")) > 0.3


CHANGES: list[dict[str, Any]] = [
    {"prompt": "film {question}"},
    {"prompt": "{question} {options}"},
    {"prompt": "{question} {options}", "response": "letter"},
    {"length_normalised": True},
    {"max_prompt_tokens": 2},
    {"max_new_tokens": 1},
    {"questions": 5},
    {"samples": 3},
    {"baseline": "grpo"},
    {"clip": 1e-4},
    {"kl": 0.5},
    {"held_out": 0.5},
    {"aggregation": MinRewards()},
    {"aggregation": AdaptiveAlpha(0.1, 0.8, 0.9, "weighted")},
    *({"training": replace(TRAINING, **change)} for change in (
        {"steps": 1}, {"optimizer": "sgd"}, {"lr": 0.01}, {"schedule": "cosine", "final_lr": 0.1},
        {"optimizer_state": "reset"}, {"proximal_mu": 5.0, "optimizer": "sgd"},
        {"max_grad_norm": 1e-4, "optimizer": "sgd"},
    )),
    *({"model": change} for change in ({"rank": 2}, {"alpha": 4.0}, {"dropout": 0.5})),
    {"model": {"target_modules": ("c_proj",)}},
]  # fmt: skip


def disputed(name: str, question: int, option: int) -> float:
    """Return rewards that no two groups agree on."""
    return (("abc".index(name) + 1) * (option + 1) + question) % 5 / 5


def settled(folder: Path, **changes: Any) -> State:
    """Return the weights that two rounds of disputed rewards leave."""
    state = train(phase(folder, **changes), disputed, 2, ("a", "b", "c"))
    return {name: t for name, t in state.items() if name.startswith("adapter/")}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: "-".join(f"{k}" for k in c))
def test_every_setting_changes_what_is_learnt(folder: Path, change: dict[str, Any]) -> None:
    one, other = settled(folder), settled(folder, **change)
    assert not same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (AdaptiveAlpha(0.1, 0.8, EVER, "weighted"), AdaptiveAlpha(0.3, 0.8, EVER, "weighted")),
        (AdaptiveAlpha(0.1, 0.8, EVER, "weighted"), AdaptiveAlpha(0.1, 0.8, EVER, "rescaled")),
        (AdaptiveAlpha(0.1, 0.8, EVER, "weighted"), AdaptiveAlpha(0.1, 0.8, EVER, "published")),
        (AdaptiveAlpha(0.1, 0.8, EVER, "weighted"), AdaptiveAlpha(0.1, 0.8, 0.0, "weighted")),
    ],
)
def test_settings_of_the_weights_change_what_is_learnt(folder: Path, one: AdaptiveAlpha, other: AdaptiveAlpha) -> None:
    assert not same(settled(folder, aggregation=one), settled(folder, aggregation=other))


def test_memory_changes_later_rounds(folder: Path) -> None:
    def third(memory: float) -> State:
        aggregation = AdaptiveAlpha(0.1, memory, EVER, "weighted")
        return train(phase(folder, aggregation=aggregation), disputed, 3, ("a", "b", "c"))

    assert not same(third(0.0), third(0.8))


def test_more_context_changes_rewards(folder: Path) -> None:
    one, judgments = phase(folder), group("a", 1)
    state, streams = begin(one), Streams(0, "policy", 1, "a")
    few, more = (score(one.predictor, state, shard(judgments), judgments, n, streams) for n in (2, 9))
    assert not torch.equal(few, more)


# What travels


def test_the_policy_never_travels(folder: Path) -> None:
    one = phase(folder)
    state = one.update(begin(one), rewarded(begin(one), lambda *_: 1.0), STEPPER)
    weights = {name for name in state if name.startswith(("adapter/", "moments/", "history/", "server."))}
    assert len(weights) > 4
    sent = one.broadcast(state)
    assert not weights & set(sent)
    assert {name.split("/")[0].split(".")[0] for name in sent} == {"predictor", "rollouts", "answers"}
    adapter = {tuple(t.shape) for name, t in state.items() if name.startswith("adapter/")}
    assert not adapter & {tuple(t.shape) for n, t in sent.items() if not n.startswith("predictor/")}


def test_clients_do_not_build_the_language_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = phase(folder).broadcast(begin(phase(folder)))
    client = phase(folder.parent / "absent")
    one = shard(group("a", 1))
    client.check(one)
    client.local(sent, one, Streams(0, "policy", 1, "a"), {})
    client.evaluate(sent, one, Streams(0))
    assert "network" not in vars(client.policy)


def test_a_client_returns_rewards_and_counts_only(folder: Path) -> None:
    one = phase(folder, groups=("a", "b", "c"))
    state = one.broadcast(begin(one))
    reply = one.local(state, shard(group("a", 1), group("b", 2), client="both"), Streams(0, "policy", 1, "both"), {})
    assert set(reply.tensors) == {REWARDS + "a", REWARDS + "b", COUNT + "a", COUNT + "b"}
    assert all(tuple(reply.tensors[REWARDS + g].shape) == (24,) for g in "ab")
    assert all(bool(((t >= 0) & (t <= 1)).all()) for t in reply.tensors.values())
    template = one.template(state)
    assert template is not None
    template.check(reply)
    assert template.size == 3 * 25
    assert phase(folder).template(state) is None


def test_a_group_on_two_clients_counts_as_one() -> None:
    one, other = torch.tensor([[0.2, 0.4]]), torch.tensor([[0.6, 0.0]])
    summed = total([contribution_of({"b": one, "a": one}), contribution_of({"b": other})])
    groups, rewards = rewards_of(summed)
    assert groups == ["a", "b"]
    torch.testing.assert_close(rewards, torch.tensor([[0.2, 0.4], [0.4, 0.2]]))
    assert rewards_of(Contribution())[0] == []


def test_a_round_without_rewards_changes_no_weight(folder: Path) -> None:
    one = phase(folder)
    state = begin(one)
    after = one.update(state, Contribution(), STEPPER)
    assert all(torch.equal(after[name], state[name]) for name in state if name.startswith("adapter/"))
    assert not torch.equal(after["rollouts.names"], state["rollouts.names"])


# How groups score


class Recorder(torch.nn.Module):
    """Stands for a predictor: gives each option a share of its own, and keeps what it was told."""

    def predict(
        self, state: State, shard: SurveyShard, judgments: GroupJudgments, context: Tensor, target: Tensor
    ) -> Tensor:
        self.judgments, self.context, self.target = judgments, context, target
        sizes = judgments.offsets.diff()[target].tolist()
        return torch.cat([torch.arange(1.0, size + 1) / sum(range(1, size + 1)) for size in sizes])


@pytest.mark.parametrize("without", [0, 12])
def test_nothing_that_is_asked_or_held_out_is_told_to_the_predictor(folder: Path, without: int) -> None:
    one, judgments = phase(folder, questions=10), group("a", 1, without=without)
    state = begin(one)
    asked = set(Rollouts.from_state(state).names)
    held_out = {judgments.question_ids[i] for i in judgments.test.tolist()}
    for number in range(1, 6):
        recorder = Recorder()
        score(recorder, state, shard(judgments), judgments, 5, Streams(0, "policy", number, "a"))  # type: ignore[arg-type]
        told = {recorder.judgments.question_ids[i] for i in recorder.context.tolist()}
        assert len(told) == 5
        assert not told & asked
        assert not told & held_out
        assert [recorder.judgments.question_ids[i] for i in recorder.target.tolist()] == list(
            Rollouts.from_state(state).names
        )


def test_rewards_do_not_depend_on_answers_that_are_asked_or_held_out(folder: Path) -> None:
    """Answers to asked questions and held-out ones are replaced by nonsense; not a bit changes."""
    one, judgments = phase(folder), group("a", 1)
    state = begin(one)
    names = Rollouts.from_state(state).names
    secret = [i for i, name in enumerate(judgments.question_ids) if name in names or i in judgments.test.tolist()]
    shares = judgments.shares.clone()
    for question in secret:
        shares[judgments.offsets[question] : judgments.offsets[question + 1]] = 7.0
    streams = Streams(0, "policy", 1, "a")
    one_way = score(one.predictor, state, shard(judgments), judgments, 5, streams)
    changed = replace(judgments, shares=shares)
    assert torch.equal(one_way, score(one.predictor, state, shard(changed), changed, 5, streams))


def test_a_reward_is_the_foretold_share_of_the_drawn_option(folder: Path) -> None:
    one, judgments = phase(folder), group("a", 1, without=20)
    rollouts = Rollouts.from_state(begin(one))
    got = score(Recorder(), begin(one), shard(judgments), judgments, 5, Streams(0, "policy", 1, "a"))  # type: ignore[arg-type]
    for n, drawn in enumerate(rollouts.options.tolist()):
        size = int(rollouts.offsets[n + 1] - rollouts.offsets[n])
        assert got[n].tolist() == pytest.approx([(o + 1) / sum(range(1, size + 1)) for o in drawn])


def test_questions_that_a_group_never_saw_come_with_their_features(folder: Path) -> None:
    rollouts, judgments = Rollouts.from_state(begin(phase(folder))), group("a", 1, without=20)
    whole = group("whole", 2)
    known, target = with_asked(judgments, rollouts)
    assert set(rollouts.names) <= set(known.question_ids)
    for name, place in zip(rollouts.names, target.tolist(), strict=True):
        other = whole.question_ids.index(name)
        torch.testing.assert_close(
            known.features[known.offsets[place] : known.offsets[place + 1]],
            whole.features[whole.offsets[other] : whole.offsets[other + 1]],
        )
    assert torch.equal(known.shares[: len(judgments.shares)], judgments.shares)
    assert not known.shares[len(judgments.shares) :].any()
    assert torch.equal(known.train, judgments.train)


# Questions


def test_only_questions_that_may_be_asked_are_asked(folder: Path) -> None:
    one = phase(folder)
    state, seen = begin(one), set()
    for _ in range(8):
        state = one.update(state, Contribution(), STEPPER)
        seen |= set(Rollouts.from_state(state).names)
        assert len(set(Rollouts.from_state(state).names)) == 6
    allowed = {question.id for question in QUESTIONS[:ASKED]}
    assert seen <= allowed
    assert len(seen) > 12
    assert int(state["answers.asked"]) == ASKED


def test_tables_find_a_groups_questions_whatever_their_order() -> None:
    public = PublicQuestions.of(QUESTIONS, 0.25)
    values = torch.arange(float(public.offsets[-1]))
    judgments = group("a", 1)
    order = [5, 0, 30]
    table = Table(public.ids[:10], public.offsets[:11], values)
    chosen, found = table.look_up(judgments, order)
    assert chosen.tolist() == [5, 0]
    spans = [values[public.offsets[i] : public.offsets[i + 1]] for i in (5, 0)]
    assert torch.equal(found, torch.cat(spans))
    assert table.look_up(judgments, [30])[0].tolist() == []


def test_public_questions_can_come_from_a_file(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": q.text, "options": q.options} for q in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    assert read_questions(path) == list(QUESTIONS)
    last = method(folder, questions_file=path).phases(replace(setting(), questions={}))[-1]
    assert isinstance(last, PluralPolicyPhase)
    assert last.public.questions == QUESTIONS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no question"),
        ('{"question": "a?", "options": ["yes"]}', "1 option"),
        ('{"question": "a?", "options": "yes"}', "must be a list"),
        ('{"question": "a?"}', "no column 'options'"),
    ],
)
def test_a_file_of_questions_that_nobody_can_answer_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_questions(path)


def test_a_server_that_knows_no_questions_says_so(folder: Path) -> None:
    last = method(folder).phases(replace(setting(), questions={}))[-1]
    with pytest.raises(UserError, match=r"0 public questions are known.*set method\.questions to a file"):
        last.initial(Streams(0, "policy"), {})


def test_groups_that_nobody_named_and_groups_without_context_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method\.groups=\['b'\] does not name group 'a'"):
        phase(folder, groups=("b",)).check(shard(group("a", 1)))
    phase(folder, groups=("b",)).check(shard(group("a", 1), role=Role.UNSEEN))
    with pytest.raises(UserError, match=r"method\.policy\.questions=27: group 'a' has 27 training questions"):
        phase(folder, questions=27).check(shard(group("a", 1)))


def test_prompts(folder: Path) -> None:
    plain = spec(folder, prompt="Q: {question}\nA:")
    assert plain.text(QUESTIONS[0]) == "Q: film was the\nA:"
    assert plain.responses(QUESTIONS[0]) == [" good", " bad", " fine"]
    lettered = spec(folder, prompt="{question}\n{options}", response="letter")
    assert lettered.text(QUESTIONS[0]) == "film was the\nA. good\nB. bad\nC. fine"
    assert lettered.responses(QUESTIONS[0]) == [" A", " B", " C"]
    shown = spec(folder, prompt="{question} {options}")
    assert shown.text(QUESTIONS[1]) == "film was the liked\ndisliked"
    for wrong in ({"prompt": "nothing"}, {"prompt": "{question}", "response": "letter"}):
        with pytest.raises(UserError, match=r"method\.policy"):
            spec(folder, **wrong)
    assert isinstance(plain, OptionPolicySpec)


# Scores


def test_scores_are_those_of_the_answers_that_groups_gave(folder: Path) -> None:
    one = phase(folder)
    state = train(one, lambda _, q, o: float(o == 0), 2)
    judgments, shares = group("a", 1), answers(state)
    found = {item.name: item for item in decode(one.evaluate(state, shard(judgments), Streams(0)).scalars)}
    for population, questions in (("test", range(27, 36)), ("train", range(27))):
        actual = [judgments.shares[judgments.offsets[q] : judgments.offsets[q + 1]] for q in questions]
        reward = sum(float((shares[q] * p).sum()) for q, p in zip(questions, actual, strict=True))
        segments = torch.cat([torch.full((len(p),), i) for i, p in enumerate(actual)])
        distance = jensen_shannon_distance(
            torch.cat([shares[q] for q in questions]), torch.cat(actual), segments, len(actual)
        )
        assert found[f"{population}/reward"].total == pytest.approx(reward, rel=1e-5)
        assert found[f"{population}/reward"].n == len(actual)
        assert found[f"{population}/alignment_score"].total == pytest.approx(float((1 - distance).sum()), rel=1e-5)
    reference = torch.split(state["answers.reference"], state["answers.offsets"].diff().tolist())
    kl = sum(float((shares[q] * (shares[q].log() - reference[q])).sum()) for q in range(27))
    assert found["train/kl"].total == pytest.approx(kl, rel=1e-3)
    unseen = one.evaluate(state, shard(group("a", 1, test=0), role=Role.UNSEEN), Streams(0))
    assert {(item.name, item.n) for item in decode(unseen.scalars)} == {
        ("unseen/alignment_score", 9.0), ("unseen/reward", 9.0), ("unseen/kl", 9.0),
    }  # fmt: skip


def test_summaries_name_the_worst_group(folder: Path) -> None:
    one = phase(folder)
    state = begin(one)
    both = [one.evaluate(state, shard(group(name, seed)), Streams(0)) for name, seed in (("a", 1), ("b", 2))]
    sums = decode(total(both).scalars)
    values = one.summarise(sums, {})
    rewards = [item.total / item.n for item in sums if item.name == "test/reward"]
    assert values["test/reward_worst"] == min(rewards)
    assert values["test/reward"] == pytest.approx(sum(rewards) / 2)
    assert {"test/alignment_score_worst", "test/alignment_gap", "test/fairness_index", "test/kl"} <= set(values)


def test_predictions_are_the_policys_answers_and_unknown_questions_are_refused(folder: Path) -> None:
    one, judgments = phase(folder), group("a", 1)
    state = begin(one)
    got = one.predict(state, shard(judgments), judgments, torch.tensor([0]), torch.tensor([30, 2]))
    torch.testing.assert_close(got, torch.cat([answers(state)[30], answers(state)[2]]))
    strange = replace(judgments, question_ids=("new", *judgments.question_ids[1:]))
    with pytest.raises(UserError, match="was not given"):
        one.predict(state, shard(strange), strange, torch.tensor([1]), torch.tensor([0]))


# Whole runs


class Killed(BaseException):
    """Stands for a process that is killed."""


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Callable[..., Result]:
    path = tmp_path / "survey.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in survey_rows()))

    def runner(name: str, *overrides: str) -> Result:
        return start(
            [
                "method=plural_rlhf", f"method.policy.model.model={folder}", "data=survey_file", f"data.path={path}",
                "partition.unseen=1", "partition.holdout=last", "partition.test_fraction=0.25",
                "partition.min_questions=8", f"encoder.size={ENCODER.dim}", "model.width=16", "model.layers=1",
                "model.heads=2", "method.predictor.local.steps=1", "method.predictor.episode.min_questions=2",
                "method.predictor.episode.max_questions=5", "method.predictor.evaluation.draws=1",
                "method.predictor.evaluation.context_questions=4", "method.context_questions=6",
                "method.policy.prompt='{question}'", "method.policy.questions=6", "method.policy.samples=4",
                "method.policy.rounds=4", "federation.rounds=1", "federation.evaluate_every=2",
                "federation.checkpoint_every=1", *overrides, f"output={tmp_path / name}",
            ]
        )  # fmt: skip

    return runner


def final(result: Result) -> Mapping[str, Tensor]:
    return load_file(result.directory / "model" / "policy.safetensors")


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_repeats_and_resumes_bit_for_bit(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run("straight")
    assert same(final(straight), final(run("again")))
    assert not same(final(straight), final(run("other", "seed=1")))
    written = MetricsLog.round_ended

    def round_ended(log: MetricsLog, report: RoundReport) -> None:
        written(log, report)
        if report.phase == "policy" and report.round == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(MetricsLog, "round_ended", round_ended)
        run("killed")
    resumed = resume(tmp_path / "killed")
    assert same(final(straight), final(resumed))
    assert resumed.summary.metrics == straight.summary.metrics
    names = set(straight.summary.metrics)
    assert {"test/alignment_score_worst", "test/reward_worst", "test/kl", "unseen/alignment_score"} <= names
    assert {name for name in final(straight) if name.startswith("history/")} == {f"history/g{i}" for i in range(3)}
    told, wanted = survey_rows()[0], QUESTIONS[4]
    questions = tmp_path / "answers.jsonl"
    rows = [told, {"question": wanted.text, "options": wanted.options, "distribution": None}]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (predicted,) = predict(straight.directory, questions)
    table = Table(*(final(straight)[f"answers.{name}"] for name in ("ids", "offsets", "log_probabilities")))
    assert predicted.shares == pytest.approx(table.look_up(group("a", 0), [4])[1].exp().tolist())


def test_a_secure_sum_needs_the_groups_names(run: Callable[..., Result]) -> None:
    with pytest.raises(UserError, match="what phase 'policy' adds up is not known in advance"):
        run("refused", "privacy=secure_sum", "privacy.secure.minimum=2")


@pytest.mark.slow
def test_a_secure_sum_of_rewards_trains_the_same_policy(run: Callable[..., Result]) -> None:
    """To the sum's rounding; plain steps, since Adam makes a full step of a difference that is nothing but rounding."""
    plainly = ("method.policy.training.optimizer=sgd", "method.policy.training.lr=2.0")
    # Under a guarantee nobody takes its own answers out of the prior, so that rewards would differ with one.
    plainly = (*plainly, "method.predictor.prior=none")
    named = ("method.groups=[g0,g1,g2]", "federation.rounds=0", "method.policy.rounds=1", *plainly)
    plain, secret = run("plain", *named), run("secret", *named, "privacy=secure_sum", "privacy.secure.minimum=2")
    fresh = run("fresh", *named, "method.policy.rounds=0")
    moved = [name for name in final(plain) if name.startswith("adapter/")]
    assert max(float((final(plain)[name] - final(fresh)[name]).abs().max()) for name in moved) > 5e-3
    for name in moved:
        torch.testing.assert_close(final(secret)[name], final(plain)[name], atol=1e-3, rtol=1e-3)
