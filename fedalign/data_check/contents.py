"""What a file says once it is loaded: sizes, distributions, contradictions, and leaks between training and test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from fedalign.data.cleaning import Cleaning, clean_question
from fedalign.data_check.findings import CheckReport, Finding, Spread

NOBODY = "(nobody named)"


def check_contents(report: CheckReport, loaded: Any) -> None:
    """Add to a report what the loaded data tell.

    Parameters
    ----------
    report : CheckReport
    loaded : Survey, PairSet, RankingSet or Corpus
    """
    report.dropped = {rule: count for rule, count in loaded.dropped.items() if count}
    _CONTENTS[report.kind](report, loaded)


def _survey(report: CheckReport, survey: Any) -> None:
    questions = survey.questions
    report.sizes["questions of a group"] = Spread.of([len(own) for own in survey.answers.values()])
    report.sizes["groups that answer a question"] = Spread.of(
        list(Counter(qid for own in survey.answers.values() for qid in own).values())
    )
    report.sizes["options of a question"] = Spread.of([len(question.options) for question in questions.values()])
    report.counts["questions by group"] = {group: len(own) for group, own in survey.answers.items()}
    shares = [float(own.max()) for answers in survey.answers.values() for own in answers.values()]
    report.counts["largest share of an answer"] = _bins(shares)
    certain = sum(share > 1 - 1e-9 for share in shares)
    if certain:
        report.findings.append(
            Finding("warning", "answer_certain", f"{certain} answers give one option everything; are they one "
            f"person's, "
                    "rather than a group's shares?", certain)
        )  # fmt: skip
    report.findings.extend(_questions_alike(questions.values()))
    report.findings.extend(_artefacts(questions.values()))
    if len(survey.answers) < 3:
        report.findings.append(
            Finding("warning", "groups_few", f"{len(survey.answers)} groups; sums over so few come close to single "
                    "answers, and partition=by_group needs some to train and some to stay unseen", len(survey.answers))
        )  # fmt: skip


def _questions_alike(questions: Iterable[Any]) -> Iterator[Finding]:
    """Yield a warning about questions that differ in options or in writing alone: one may train and the other test."""
    forms = Counter(_plain(question.text) for question in questions)
    alike = [count for count in forms.values() if count > 1]
    if alike:
        yield Finding(
            "warning", "questions_alike", f"{len(alike)} questions are there with other options or other writing too; "
            f"they "
            "count as different, and one may be trained on while the other is held out", len(alike),
        )  # fmt: skip


def _artefacts(questions: Iterable[Any]) -> Iterator[Finding]:
    """Yield what the rules of cleaning, which are off for one's own survey, would remove."""
    rules = Cleaning(whitespace=True, totals=True, refusals=True, missing=True, min_mass=0.5)
    found: Counter[str] = Counter()
    for question in questions:
        found.update(clean_question(question.text, question.options, rules).removed)
    keys = {"total_option": "totals", "refusal_option": "refusals", "missing_option": "missing"}
    for rule, count in found.items():
        yield Finding(
            "note", rule, f"{count} options look like no answers ({rule}); data.cleaning.{keys[rule]}=true removes "
            f"them",
            count,
        )  # fmt: skip


def _pairs(report: CheckReport, pairs: Any) -> None:
    judged = pairs.pairs
    _people(report, [(pair.annotator, pair.group, pair.split) for pair in judged], "judgments of an annotator")
    firsts = Counter("longer" if len(p.chosen) > len(p.rejected) else "not longer" for p in judged if not p.tie)
    report.counts["the preferred response is"] = firsts
    decided = firsts.total()
    if decided >= 20 and not 0.15 < firsts["longer"] / decided < 0.85:
        share = firsts["longer"] / decided
        report.findings.append(
            Finding("warning", "length_decides", f"the preferred response is the longer one in {share:.0%} of the "
            f"judgments; "
                    "a rule that only counts characters would be hard to beat (method=length_rule)", decided)
        )  # fmt: skip
    _contradictions(
        report,
        [(p.annotator, (p.prompt, frozenset((p.chosen, p.rejected))), "tie" if p.tie else p.chosen) for p in judged],
    )
    _leaks(report, [(pair.annotator, pair.prompt, pair.split) for pair in judged])


def _rankings(report: CheckReport, rankings: Any) -> None:
    judged = rankings.rankings
    _people(report, [(r.annotator, r.group, r.split) for r in judged], "judgments of an annotator")
    report.sizes["responses of a menu"] = Spread.of([len(r.responses) for r in judged])
    report.counts["place of the best response"] = Counter(f"{r.tiers.index(0) + 1}" for r in judged)
    report.counts["judgments with ties"] = Counter(
        "tied" if len(set(r.tiers)) < len(r.tiers) else "no ties" for r in judged
    )
    if rankings.probe:
        report.sizes["menus of the probe"] = Spread.of([len(rankings.probe)])
        report.findings.append(
            Finding("note", "probe_public", f"the {len(rankings.probe)} menus of the probe are public: every site "
            f"sends "
                    "the same ones, and only what annotators answered is private", len(rankings.probe))
        )  # fmt: skip
    _contradictions(
        report,
        [
            (r.annotator, (r.prompt, frozenset(r.responses)), tuple(sorted(zip(r.responses, r.tiers, strict=True))))
            for r in judged
        ],
    )
    _leaks(report, [(r.annotator, r.prompt, r.split) for r in judged])


def _texts(report: CheckReport, corpus: Any) -> None:
    examples = corpus.examples
    _people(report, [(e.user, e.group, e.split) for e in examples], "texts of a user")
    report.counts["what the texts are"] = Counter(
        "demonstrations" if e.rejected is None else "comparisons" for e in examples
    )
    compared = [e for e in examples if e.rejected is not None]
    _contradictions(report, [(e.user, (e.prompt, frozenset((e.response, e.rejected))), e.response) for e in compared])
    _leaks(report, [(e.user, e.prompt, e.split) for e in examples if e.prompt.strip()])


_CONTENTS: Mapping[str, Callable[[CheckReport, Any], None]] = {
    "survey": _survey,
    "pairs": _pairs,
    "rankings": _rankings,
    "texts": _texts,
}


def _people(report: CheckReport, rows: list[tuple[str | None, str, str]], sizes: str) -> None:
    own = Counter(NOBODY if person is None else person for person, _, _ in rows)
    report.sizes[sizes] = Spread.of(list(own.values()))
    report.counts["by group"] = Counter(group for _, group, _ in rows)
    report.counts["by split"] = Counter(split for _, _, split in rows)
    if own[NOBODY]:
        report.findings.append(
            Finding("warning", "nobody_named", f"{own[NOBODY]} of {len(rows)} rows do not say whose they are; "
            f"partitions by "
                    "person refuse them, and a guarantee for people needs to know", own[NOBODY])
        )  # fmt: skip
    untested = {p for p, _, _ in rows} - {p for p, _, split in rows if split == "test"}
    if untested:
        report.findings.append(
            Finding("note", "person_untested", f"{len(untested)} people have nothing held out for them to be tested on",
                    len(untested))
        )  # fmt: skip


def _contradictions(report: CheckReport, rows: list[tuple[str | None, Hashable, Hashable]]) -> None:
    """Tell of the same choice made twice with different outcomes: by one person, and by different ones."""
    own: dict[tuple[str | None, Hashable], set[Hashable]] = defaultdict(set)
    everybody: dict[Hashable, set[Hashable]] = defaultdict(set)
    for person, choice, outcome in rows:
        own[person, choice].add(outcome)
        everybody[choice].add(outcome)
    within = sum(len(outcomes) > 1 for outcomes in own.values())
    if within:
        report.findings.append(
            Finding("warning", "contradiction", f"{within} choices were judged twice by the same person with different "
                    "outcomes, such as the same pair with its sides swapped; both are learnt from", within)
        )  # fmt: skip
    between = sum(len(outcomes) > 1 for outcomes in everybody.values())
    if between > within:
        report.findings.append(
            Finding("note", "disagreement", f"{between} choices have different outcomes by different people", between)
        )  # fmt: skip


def _leaks(report: CheckReport, rows: list[tuple[str | None, str, str]]) -> None:
    """Tell of prompts that are both trained on and held out."""
    trained = {(person, _plain(prompt)) for person, prompt, split in rows if split == "train"}
    tested = {(person, _plain(prompt)) for person, prompt, split in rows if split == "test"}
    own = len(trained & tested)
    shared = len({prompt for _, prompt in trained} & {prompt for _, prompt in tested})
    if own:
        report.findings.append(
            Finding("warning", "leak", f"{own} prompts of a person are trained on and held out for the same person; "
            f"set the "
                    "column 'split' by prompt, or leave it out and a hash of the prompt decides", own)
        )  # fmt: skip
    if shared > own:
        report.findings.append(
            Finding("note", "prompt_in_both", f"{shared} prompts are trained on by somebody and held out for somebody",
                    shared)
        )  # fmt: skip


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _bins(shares: Iterable[float]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for share in shares:
        low = min(9, int(share * 10)) / 10
        found[f"{low:.1f} to {low + 0.1:.1f}"] += 1
    return dict(sorted(found.items()))
