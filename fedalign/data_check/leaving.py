"""What leaves a site that joins a federation with its file, by privacy mode; docs/security.md says more."""

from __future__ import annotations

_ALWAYS = (
    "that the site is there; the names of its clients{names}; whether each trains or only answers evaluations; which "
    "of "
    "them contributed in a round, how long they took, how many numbers they sent; the kind of an error, without its "
    "text"
)

_MODES = {
    "none": "each message holds the exact sum over the site's clients, or one client's: weighted changes of the "
    "model, the "
    "weight (a number of {unit}, unless weights are uniform), and metric sums and counts by group, with the group's "
    "name",
    "secure_sum": "nobody but the site sees its clients' numbers: the server sees sums over all clients of a round, "
    "exact "
    "ones; no metrics, unless they are asked for as sums",
    "central": "the server sees each message's clipped sum, without the weight; everybody else sees sums with noise",
    "distributed": "the server and everybody else see sums over all clients of a round with noise that the clients "
    "added",
    "local_example": "each client's change of the model, with noise on the site that hides any one row",
    "local_user": "each client's change of the model, with noise on the site that hides any one person",
}

_NAMES = {
    "survey": " (groups, with partition=by_group)",
    "pairs": " (annotators, with partition=by_annotator)",
    "rankings": " (annotators, with partition=annotators)",
    "texts": " (users, with partition=users)",
}

_STAYS = {
    "survey": "every answer and share; which questions a survey asks is taken as public",
    "pairs": "every prompt, response and choice, and the names of annotators that are no clients",
    "rankings": "every prompt, response and order but the menus of a probe, and the names of annotators that are no "
    "clients",
    "texts": "every prompt and response, and the names of users that are no clients",
}

_UNITS = {"survey": "questions or points", "pairs": "judgments", "rankings": "judgments", "texts": "texts"}


def what_leaves(kind: str) -> dict[str, str]:
    """Return, by privacy mode, what leaves the machine; under ``always`` what does in every mode."""
    always = {"always": _ALWAYS.format(names=_NAMES[kind])}
    return {**always, **{mode: text.format(unit=_UNITS[kind]) for mode, text in _MODES.items()}}


def what_stays(kind: str) -> str:
    """Return what never leaves."""
    return _STAYS[kind]
