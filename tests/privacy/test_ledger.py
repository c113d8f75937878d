"""The ledger: who was in which releases, against a brute force over units; and that nothing gets lost on the way."""

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedalign.errors import UserError
from fedalign.privacy import accounting
from fedalign.privacy.delta import check_delta, default_delta
from fedalign.privacy.events import (
    FixedSizeGaussianEvent,
    GaussianEvent,
    MatrixGaussianEvent,
    PoissonGaussianEvent,
    Relation,
    Unit,
)
from fedalign.privacy.ledger import Entry, Ledger

DELTA = 1e-5
GAUSSIAN = GaussianEvent(3.0)
POISSON = PoissonGaussianEvent(0.05, 1.0)


def ledger(relation=Relation.ADD_OR_REMOVE, delta=DELTA):
    return Ledger(Unit.CLIENT, relation, delta)


def gaussian_epsilon(*noises):
    composed = accounting.composition([(GaussianEvent(noise), 1) for noise in noises])
    return accounting.epsilon(composed, DELTA)


def test_an_empty_ledger_has_spent_nothing():
    assert ledger().epsilon() == ledger().epsilon_rdp() == 0
    assert ledger().releases == 0
    assert ledger().by_phase() == {}


def test_mistake_16_disjoint_sets_compose_in_parallel_and_overlapping_ones_in_sequence():
    book = ledger()
    book.declare("sft", ["a", "b"])
    book.declare("reward", ["c"])
    book.declare("ppo", ["b", "d"])
    book.record(Entry("sft", GaussianEvent(2.0), 1, "sft"))
    book.record(Entry("reward", GaussianEvent(1.5), 1, "reward"))
    assert book.epsilon() == pytest.approx(gaussian_epsilon(1.5))
    book.record(Entry("ppo", GaussianEvent(1.8), 1, "ppo"))
    assert book.epsilon() == pytest.approx(max(gaussian_epsilon(1.5), gaussian_epsilon(2.0, 1.8)))
    assert book.epsilon() > gaussian_epsilon(1.5)


def test_mistake_15_one_shared_unit_is_enough_to_compose_in_sequence():
    apart, shared = ledger(), ledger()
    for book, second in ((apart, ["u7", "u8"]), (shared, ["u6", "u7"])):
        book.declare("first", [f"u{i}" for i in range(7)])
        book.declare("second", second)
        book.record(Entry("a", GAUSSIAN, 4, "first"))
        book.record(Entry("b", GAUSSIAN, 4, "second"))
    assert apart.epsilon() == pytest.approx(gaussian_epsilon(*[3.0] * 4))
    assert shared.epsilon() == pytest.approx(gaussian_epsilon(*[3.0] * 8))


def test_mistake_16_what_may_be_anybodys_composes_in_sequence():
    book = ledger()
    book.declare("sft", ["a"])
    book.record(Entry("sft", GaussianEvent(2.0), 1, "sft"))
    book.record(Entry("metrics", GaussianEvent(4.0)))
    assert book.epsilon() == pytest.approx(gaussian_epsilon(2.0, 4.0))


def test_undeclared_sets_and_changed_ones_are_refused():
    book = ledger()
    with pytest.raises(UserError, match="not declared"):
        book.record(Entry("sft", GAUSSIAN, 1, "sft"))
    book.declare("sft", ["a"])
    book.declare("sft", ["a"])
    with pytest.raises(UserError, match="changed"):
        book.declare("sft", ["a", "b"])
    assert book.releases == 0


@settings(max_examples=40, deadline=None)
@given(
    sets=st.lists(st.sets(st.integers(0, 6), max_size=5), min_size=1, max_size=4),
    draws=st.lists(
        st.tuples(st.integers(-1, 3), st.sampled_from([1.0, 2.0, 5.0]), st.integers(1, 3), st.booleans()), max_size=8
    ),
)
def test_epsilon_is_the_largest_over_units_by_brute_force(sets, draws):
    """Every unit's own sequential composition, unit 99 being one that is in no set."""
    book, spent = ledger(), {unit: [] for unit in (*range(7), 99)}
    for index, members in enumerate(sets):
        book.declare(str(index), map(str, members))
    for index, noise, count, by_ids in draws:
        index = min(index, len(sets) - 1)
        touched = spent if index < 0 else sets[index]
        event = GaussianEvent(noise)
        if index >= 0 and by_ids:
            book.record(Entry("phase", event, count), ids=map(str, touched))
        else:
            book.record(Entry("phase", event, count, None if index < 0 else str(index)))
        for unit in touched:
            spent[unit] += [(event, count)]
    composed = [accounting.composition(events) for events in spent.values()]
    assert book.epsilon() == pytest.approx(max(accounting.epsilon(each, DELTA) for each in composed), rel=1e-9)
    assert book.epsilon_rdp() == pytest.approx(max(accounting.epsilon_rdp(each, DELTA) for each in composed), rel=1e-9)
    assert book.most("phase") == max(sum(count for _, count in events) for events in spent.values())


def test_the_costliest_class_is_found_among_different_mechanisms():
    book = ledger()
    releases = {"a": (POISSON, 30), "b": (GAUSSIAN, 2), "c": (PoissonGaussianEvent(0.2, 1.5), 30), "d": (POISSON, 40)}
    for unit, (event, count) in releases.items():
        book.record(Entry("local", event, count), ids=[unit])
    each = [accounting.epsilon(accounting.composition([release]), DELTA) for release in releases.values()]
    assert book.epsilon() == max(each)


def test_equal_entries_are_merged():
    book = ledger()
    for _ in range(50):
        book.record(Entry("sft", POISSON))
    once = ledger()
    once.record(Entry("sft", POISSON, 50))
    assert book.to_json() == once.to_json()
    assert book.releases == 50


def test_extra_is_tried_out_and_not_kept():
    book = ledger()
    book.record(Entry("sft", POISSON, 5))
    before = book.to_json()
    more = book.epsilon([Entry("sft", POISSON, 3), Entry("metrics", GAUSSIAN)])
    assert book.to_json() == before
    book.record(Entry("sft", POISSON, 3))
    book.record(Entry("metrics", GAUSSIAN))
    assert book.epsilon() == more


def test_phases_alone():
    book = ledger()
    book.record(Entry("sft", GaussianEvent(2.0), 2))
    book.record(Entry("ppo", GaussianEvent(4.0)), ids=["a"])
    assert book.by_phase() == {
        "ppo": pytest.approx(gaussian_epsilon(4.0)),
        "sft": pytest.approx(gaussian_epsilon(2.0, 2.0)),
    }
    assert (book.most("sft"), book.most("ppo"), book.most("none")) == (2, 1, 0)
    assert book.phases == {"sft", "ppo"}


def test_cohorts_cost_what_the_busiest_unit_was_in():
    book, rng, counts = ledger(), np.random.default_rng(0), np.zeros(200, dtype=int)
    for _ in range(40):
        cohort = rng.choice(200, 10, replace=False)
        counts[cohort] += 1
        book.record(Entry("sft", GAUSSIAN), ids=[str(each) for each in cohort])
    assert book.most("sft") == counts.max()
    assert book.releases == 40
    assert book.epsilon() == pytest.approx(gaussian_epsilon(*[3.0] * int(counts.max())))


def test_ids_do_not_go_with_a_declared_set_nor_with_a_cumulative_event():
    book = ledger()
    book.declare("sft", ["a"])
    for entry in (Entry("sft", GAUSSIAN, 1, "sft"), Entry("sft", MatrixGaussianEvent(1.0, 1.0))):
        with pytest.raises(ValueError, match="ids"):
            book.record(entry, ids=["a"])


def test_mistake_17_a_ledger_read_back_spends_the_same_and_goes_on_the_same():
    book = ledger()
    book.declare("d1", ["a", "b"])
    book.record(Entry("sft", PoissonGaussianEvent(0.1, 1 / 3), 7, "d1"))
    book.record(Entry("ppo", GAUSSIAN), ids=["b", "c"])
    book.record(Entry("ppo", GAUSSIAN), ids=["b"])
    book.record(Entry("mf", MatrixGaussianEvent(2.0, math.sqrt(3)), 3))
    back = Ledger.from_json(json.loads(json.dumps(book.to_json())))
    assert back.to_json() == book.to_json()
    assert (back.unit, back.relation, back.delta) == (book.unit, book.relation, book.delta)
    assert back.releases == book.releases == 12
    assert back.epsilon() == book.epsilon()
    for each in (back, book):
        each.record(Entry("ppo", GAUSSIAN), ids=["c"])
        each.record(Entry("mf", MatrixGaussianEvent(2.0, 2.0), 4))
    assert back.to_json() == book.to_json()
    assert back.epsilon() == book.epsilon()


def test_mistake_17_an_unknown_event_in_a_checkpoint_is_refused():
    facts = ledger().to_json()
    facts["entries"] = [{"phase": "x", "event": {"event": "Laplace", "scale": 1}, "count": 1, "members": None}]
    with pytest.raises(UserError, match="unknown event"):
        Ledger.from_json(facts)


def test_no_names_are_kept():
    book = ledger()
    book.declare("d1", ["alice"])
    book.record(Entry("sft", GAUSSIAN), ids=["bob"])
    text = json.dumps(book.to_json())
    assert "alice" not in text
    assert "bob" not in text


def test_mistake_18_every_try_of_a_round_is_charged():
    book = ledger()
    for _ in range(2):
        book.record(Entry("sft", GAUSSIAN), ids=["a", "b"])
    assert book.epsilon() == pytest.approx(gaussian_epsilon(3.0, 3.0))


def test_mistake_19_delta_must_be_below_one_over_the_units():
    for delta, units in ((0.01, 100), (0.5, 3), (0.0, 10), (-1e-5, 10), (1.0, 1), (math.nan, 10)):
        with pytest.raises(UserError, match=r"privacy\.delta"):
            check_delta(delta, units)
    check_delta(0.0099, 100)
    for units in (1, 2, 10, 10**6):
        check_delta(default_delta(units), units)
    assert default_delta(1000) == pytest.approx(1000**-1.1)
    with pytest.raises(UserError, match=r"privacy\.delta"):
        ledger(delta=1.0)
    with pytest.raises(ValueError, match="units"):
        default_delta(0)


def test_a_matrix_mechanism_costs_its_participations_and_not_its_rounds():
    book = ledger()
    for number in range(1, 13):
        book.record(Entry("ftrl", MatrixGaussianEvent(2.0, math.sqrt(math.ceil(number / 4))), number))
    assert book.epsilon() == pytest.approx(gaussian_epsilon(2.0, 2.0, 2.0))
    assert book.releases == 12
    more = book.epsilon([Entry("ftrl", MatrixGaussianEvent(2.0, 2.0), 13)])
    assert more == pytest.approx(gaussian_epsilon(2.0, 2.0, 2.0, 2.0))


def test_a_matrix_mechanism_never_takes_anything_back():
    book = ledger()
    book.record(Entry("ftrl", MatrixGaussianEvent(2.0, 2.0), 8))
    for event, count in (
        (MatrixGaussianEvent(2.0, 2.0), 7),
        (MatrixGaussianEvent(2.0, 1.0), 9),
        (MatrixGaussianEvent(3.0, 2.0), 9),
    ):
        with pytest.raises(ValueError, match="does not go on"):
            book.record(Entry("ftrl", event, count))
    assert book.releases == 8
    assert book.epsilon([Entry("another", MatrixGaussianEvent(2.0, 2.0), 8)]) > book.epsilon()


def test_relation_and_event_must_fit():
    with pytest.raises(UserError, match="replace_one"):
        ledger().record(Entry("sft", FixedSizeGaussianEvent(1000, 100, 1.0)))
    with pytest.raises(UserError, match="add_or_remove"):
        ledger(Relation.REPLACE_ONE).epsilon([Entry("sft", POISSON)])


def test_replacing_costs_as_half_the_noise():
    book = ledger(Relation.REPLACE_ONE)
    book.record(Entry("sft", GaussianEvent(4.0)))
    book.record(Entry("mf", MatrixGaussianEvent(8.0, 2.0), 4))
    assert book.epsilon() == pytest.approx(gaussian_epsilon(2.0, 2.0))


def test_fixed_size_and_gaussian_compose_by_renyi_under_replace_one():
    book = ledger(Relation.REPLACE_ONE, 1e-3)
    book.record(Entry("sft", FixedSizeGaussianEvent(1000, 100, 1.0), 100))
    assert book.epsilon() == pytest.approx(79.3, abs=0.1)
    assert book.epsilon([Entry("metrics", GaussianEvent(20.0))]) > book.epsilon()
    assert book.epsilon() == book.epsilon_rdp()


def test_no_noise_is_infinite_for_those_it_touches():
    book = ledger()
    book.declare("d1", ["a"])
    book.record(Entry("sft", POISSON, 3))
    book.record(Entry("leak", GaussianEvent(0.0), 1, "d1"))
    assert math.isinf(book.epsilon())
    assert math.isinf(book.by_phase()["leak"])
    assert math.isfinite(book.by_phase()["sft"])


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(rate=st.floats(0.01, 0.5), noise=st.floats(0.8, 5.0), rounds=st.integers(1, 200), factor=st.floats(1.01, 3.0))
def test_epsilon_is_monotone_in_rounds_noise_and_rate(rate, noise, rounds, factor):
    def spent(rate, noise, rounds):
        return ledger().epsilon([Entry("sft", PoissonGaussianEvent(rate, noise), rounds)])

    now, slack = spent(rate, noise, rounds), 1 + 2e-3
    assert spent(rate, noise, math.ceil(rounds * factor)) * slack + 1e-6 >= now
    assert spent(rate, noise * factor, rounds) <= now * slack + 1e-6
    assert spent(rate / factor, noise, rounds) <= now * slack + 1e-6


def test_it_stays_cheap_with_a_thousand_clients():
    """Each round charges a known cohort and everyone's metrics; each client has its own local sampling rate."""
    book, rng = ledger(), np.random.default_rng(0)
    names = [f"client {i}" for i in range(1000)]
    start = time.process_time()
    for _ in range(100):
        book.record(Entry("sft", GaussianEvent(5.0)), ids=rng.choice(names, 100, replace=False))
        book.record(Entry("metrics", GaussianEvent(50.0)))
    book.epsilon()
    assert time.process_time() - start < 1.5
    start = time.process_time()
    book.epsilon()
    assert time.process_time() - start < 0.05
    assert len(json.dumps(book.to_json())) < 100_000
