"""A whole round: the sum is exact with dropouts between every two stages, or there is none."""

from __future__ import annotations

import numpy as np
import pytest

from fedalign.errors import UserError
from fedalign.federation.secure.coordinator import SecureSumAborted
from fedalign.federation.secure.fixed_point import word_type
from fedalign.federation.secure.settings import SecAgg
from tests.federation.secure.rounds import STAGES, Round, stored_and_loaded, total, words

FIVE = SecAgg(bits=64, fraction_bits=32, neighbours=4, threshold=0.6, minimum=3)


def random_round(case: int) -> tuple[Round, dict[str, np.ndarray]]:
    """Return a round of random size, settings and 0-40 % dropouts in each of a random set of stages."""
    generator = np.random.default_rng(case)
    parties, bits = int(generator.integers(3, 13)), [32, 64][case % 2]
    settings = SecAgg(
        bits=bits,
        fraction_bits=int(generator.integers(8, 17)),
        neighbours=2 * int(generator.integers(1, 6)),
        threshold=float(generator.uniform(0.51, 0.75)),
        minimum=int(generator.integers(2, max(3, parties // 2 + 1))),
    )
    values = {f"c{place}": generator.normal(size=7) for place in range(parties)}
    silent = {}
    for stage in STAGES:
        if generator.random() < 0.5:
            count = int(generator.integers(0, int(0.4 * parties) + 1))
            silent[stage] = set(generator.choice(list(values), count, replace=False).tolist())
    code = settings.codec(parties)
    return Round({name: code.encode(value) for name, value in values.items()}, settings, silent), values


def outcome(one: Round) -> str:
    """Return what must become of a round, counted by hand where everyone is everyone's neighbour."""
    left, alive = len(one.vectors), set(one.vectors)
    needed = 0
    for stage in STAGES:
        alive -= set(one.silent.get(stage, ()))
        left = len(alive)
        if stage == "advertise":
            if one.settings.neighbours < left - 1:
                return "either"
            needed = one.settings.shares_needed(left)
        if left < needed or (stage != "unmask" and left < one.settings.minimum):
            return "abort"
    return "sum"


def try_random_rounds(count: int) -> tuple[int, dict[str, int]]:
    """Check rounds until so many have finished; return how many aborted and how many of them had dropouts, by stage."""
    finished, with_dropouts = 0, dict.fromkeys(STAGES, 0)
    case = aborted = 0
    while finished < count:
        case += 1
        one, values = random_round(case)
        gone = {name for stage in STAGES[:3] for name in one.silent.get(stage, ())}
        must = outcome(one)
        try:
            words = one.run()
        except SecureSumAborted:
            assert must != "sum"
            aborted += 1
            continue
        assert must != "abort"
        survivors = one.coordinator.survivors
        assert survivors <= set(values) - gone
        # None is lost without a reason: only those whose neighbourhood fell below the threshold are refused.
        assert set(values) - gone - survivors == set(one.coordinator.refused)
        assert len(survivors) >= one.settings.minimum
        code = one.settings.codec(len(values))
        plain = np.sum([values[name] for name in survivors], axis=0)
        np.testing.assert_allclose(
            code.decode(words), plain, rtol=0, atol=code.quantisation_error(len(survivors)) + 1e-12
        )
        finished += 1
        for stage in STAGES:
            with_dropouts[stage] += bool(one.silent.get(stage))
    return aborted, with_dropouts


@pytest.mark.slow
def test_a_secure_sum_is_the_plain_sum_of_those_whose_vector_arrived_or_it_aborts() -> None:
    aborted, with_dropouts = try_random_rounds(200)
    assert 20 <= aborted <= 400
    assert all(count >= 25 for count in with_dropouts.values())


def test_a_few_random_rounds_are_the_plain_sum_or_abort() -> None:
    aborted, with_dropouts = try_random_rounds(25)
    assert 2 <= aborted <= 50
    assert all(count >= 3 for count in with_dropouts.values())


@pytest.mark.parametrize("stage", STAGES)
def test_up_to_two_of_five_may_drop_out_in_any_stage(stage: str) -> None:
    vectors = words(5, 4)
    for lost in ([], ["c1"], ["c0", "c4"]):
        summed = Round(vectors, FIVE, {stage: lost}).run()
        expected = set(vectors) - (set(lost) if stage != "unmask" else set())
        np.testing.assert_array_equal(summed, total(vectors, expected))


def test_different_parties_may_drop_out_between_every_two_stages() -> None:
    vectors = words(12, 4)
    settings = SecAgg(64, 32, 20, 0.51, 3)
    silent = {"advertise": ["c0"], "share": ["c1"], "mask": ["c2", "c3"], "unmask": ["c4", "c5"]}
    one = Round(vectors, settings, silent)
    np.testing.assert_array_equal(one.run(), total(vectors, one.coordinator.survivors))
    assert one.coordinator.survivors == set(vectors) - {"c0", "c1", "c2", "c3"}


@pytest.mark.parametrize("stage", STAGES[:3])
def test_mistake_23_a_sum_of_too_few_survivors_is_never_revealed(stage: str) -> None:
    vectors = words(6, 4)
    settings = SecAgg(64, 32, 20, 0.51, 5)
    np.testing.assert_array_equal(
        Round(vectors, settings, {stage: ["c0"]}).run(), total(vectors, set(vectors) - {"c0"})
    )
    one = Round(vectors, settings, {stage: ["c0", "c1"]})
    with pytest.raises(SecureSumAborted, match="only 4 clients"):
        one.run()
    assert "unmask" not in one.sent  # nobody was asked for a share
    with pytest.raises(ValueError, match="not to be had"):
        one.coordinator.result()


@pytest.mark.parametrize("lost", [["c0", "c1", "c2"], ["c0", "c1", "c2", "c3"]])
def test_below_the_threshold_no_secret_is_recovered(lost: list[str]) -> None:
    one = Round(words(6, 4), SecAgg(64, 32, 20, 0.6, 2), {"unmask": lost})
    with pytest.raises(SecureSumAborted, match="shares given, 4 needed"):
        one.run()


def test_survivors_below_the_threshold_are_not_even_asked() -> None:
    one = Round(words(6, 4), SecAgg(64, 32, 20, 0.6, 2), {"mask": ["c0", "c1", "c2"]})
    with pytest.raises(SecureSumAborted, match="too few neighbours"):
        one.run()
    assert "unmask" not in one.sent


def test_survivors_without_common_masks_would_reveal_two_sums_and_are_refused() -> None:
    vectors = words(12, 4)
    one = Round(vectors, SecAgg(64, 32, 2, 0.51, 2))
    one.advertise()
    one.share()
    # On a ring of 12, the loss of two opposite parties leaves two arcs of five.
    graph = one.coordinator._graph
    first = "c0"
    distance, frontier = {first: 0}, [first]
    while frontier:
        name = frontier.pop(0)
        for other in sorted(graph[name] - set(distance)):
            distance[other] = distance[name] + 1
            frontier.append(other)
    opposite = max(distance, key=lambda name: distance[name])
    assert distance[opposite] == 6
    one.silent = {"mask": [first, opposite]}
    one.mask()
    with pytest.raises(SecureSumAborted, match="fell apart"):
        one.unmask()


def test_parties_whose_neighbourhood_shrank_drop_out_before_they_mask() -> None:
    vectors = words(12, 4)
    one = Round(vectors, SecAgg(64, 32, 2, 0.9, 2))
    one.advertise()
    one.silent = {"share": ["c0"]}
    one.share()
    with pytest.raises(SecureSumAborted, match="only 0 clients shared"):
        one.mask()  # all three of each neighbourhood are needed, so that the ring unravels


def test_a_round_survives_the_restart_of_every_party_between_all_stages() -> None:
    vectors = words(6, 9)
    one = Round(vectors, SecAgg(64, 32, 4, 0.6, 3), {"mask": ["c2"], "unmask": ["c3"]}, between=stored_and_loaded)
    np.testing.assert_array_equal(one.run(), total(vectors, set(vectors) - {"c2"}))
    for party in one.parties.values():
        assert stored_and_loaded(party) == party


def test_a_large_vector_passes_several_chunks_of_masks() -> None:
    vectors = words(3, 70_001, bits=32)
    np.testing.assert_array_equal(Round(vectors, SecAgg(32, 8, 2, 0.6, 2)).run(), total(vectors, vectors))


def test_two_parties_with_signed_names_and_an_empty_vector_are_no_special_case() -> None:
    vectors = {name: np.zeros(0, word_type(64)) for name in ("é/1", "", "b\x00")}
    assert Round(vectors, SecAgg(64, 8, 2, 0.6, 2)).run().shape == (0,)


def test_settings_are_held_against_the_cohort() -> None:
    FIVE.check(5)
    with pytest.raises(UserError, match="minimum=3"):
        FIVE.check(2)
    with pytest.raises(UserError, match="leaves no room"):
        SecAgg(32, 30, 4, 0.6, 3).check(5)


@pytest.mark.parametrize("threshold", [0.5 + 1e-12, 0.500001, 0.55, 0.6, 2 / 3, 0.7, 1.0])
def test_two_disjoint_sets_never_both_reach_the_threshold(threshold: float) -> None:
    for neighbourhood in range(2, 120):
        needed = SecAgg(64, 32, 4, threshold, 2).shares_needed(neighbourhood)
        assert neighbourhood < 2 * needed
        assert threshold * neighbourhood - 1e-6 <= needed <= neighbourhood


def test_fractions_that_floating_point_overshoots_need_no_extra_share() -> None:
    assert 0.56 * 25 > 14
    assert SecAgg(64, 32, 4, 0.56, 2).shares_needed(25) == 14
