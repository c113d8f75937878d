"""What the coordinator holds, and what it does with malformed messages."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from fedalign.federation.secure import keys, masks
from fedalign.federation.secure.coordinator import Coordinator, SecureSumAborted
from fedalign.federation.secure.messages import Disclosure
from fedalign.federation.secure.settings import SecAgg
from tests.federation.secure.rounds import STAGES, Round, total, words

SETTINGS = SecAgg(bits=64, fraction_bits=32, neighbours=4, threshold=0.6, minimum=3)


def plain_vectors(length: int = 64) -> dict[str, np.ndarray]:
    """Return vectors that are easily told from random ones: small numbers, encoded."""
    code = SETTINGS.codec(5)
    generator = np.random.default_rng(0)
    return {f"c{place}": code.encode(generator.normal(size=length)) for place in range(5)}


def test_the_coordinator_never_holds_an_individual_contribution() -> None:
    vectors = plain_vectors()
    one = Round(vectors, SETTINGS, {"mask": ["c4"]})
    for stage in STAGES:
        getattr(one, stage)()
        held = pickle.dumps(one.coordinator)
        for vector in vectors.values():
            assert vector.tobytes() not in held
        for masked in one.sent.get("mask", {}).values():
            assert masked.tobytes() not in held  # not even the masked ones, once a second has come
    summed = one.coordinator.result()
    assert total(vectors, one.coordinator.survivors).tobytes() == summed.tobytes()
    assert summed.tobytes() in pickle.dumps(one.coordinator)  # so that what is looked for above could be found


def test_the_coordinator_keeps_one_vector_however_many_parties_there_are() -> None:
    vectors = words(8, 4000)
    one = Round(vectors, SETTINGS)
    one.advertise()
    one.share()
    one.mask()
    assert len(pickle.dumps(one.coordinator)) < 2 * vectors["c0"].nbytes


def test_a_masked_vector_less_all_pair_masks_is_still_not_the_input() -> None:
    # Whoever is late is first taken for dropped, so that its pair masks are known by the time its vector comes.
    vectors = plain_vectors()
    one = Round(vectors, SETTINGS)
    one.advertise()
    one.share()
    late = one.parties["c4"]
    private = keys.masking_key(late.seeds["masking"], one.round_id, "c4")
    seed = late.seeds["self_mask"]
    one.mask()
    rest = one.sent["mask"]["c4"].copy()
    for other in ("c0", "c1", "c2", "c3"):
        public = one.sent["advertise"][other].masking
        key = keys.pair_mask_key(private, public, one.round_id, "c4", other)
        masks.apply_mask(rest, key, -masks.sign("c4", other))
    assert looks_uniform(rest)
    assert not (rest == vectors["c4"]).any()
    masks.apply_mask(rest, keys.self_mask_key(seed, one.round_id, "c4"), -1)
    np.testing.assert_array_equal(rest, vectors["c4"])  # the self mask alone kept it secret


def looks_uniform(vector: np.ndarray) -> bool:
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    return bool(chisquare(counts).pvalue > 1e-9)  # the masks are not seeded, and many vectors are tested


def test_masked_vectors_look_uniform_and_never_alike() -> None:
    vectors = {name: np.zeros(20_000, np.uint64) for name in ("a", "b", "c")}
    rounds = [Round(vectors, SETTINGS, round_id="r1"), Round(vectors, SETTINGS, round_id="r1")]
    for one in rounds:
        np.testing.assert_array_equal(one.run(), 0)
    masked = [vector for one in rounds for vector in one.sent["mask"].values()]
    assert not looks_uniform(vectors["a"])
    for place, one in enumerate(masked):
        assert looks_uniform(one)
        for other in masked[:place]:
            assert not (one == other).any()
            assert looks_uniform(one - other)
            assert looks_uniform(one + other)


def test_no_mask_is_common_to_two_rounds() -> None:
    seed, other = bytes(range(16)), bytes(16)
    private = {r: keys.masking_key(seed, r, "a") for r in ("r1", "r2")}
    public = keys.masking_key(other, "r1", "b").public_key().public_bytes_raw()
    # Even with the same secrets and the same peer, which fresh seeds rule out.
    derived = [keys.pair_mask_key(private[r], public, r, "a", "b") for r in private]
    derived += [keys.pair_mask_key(private["r1"], public, "r2", "a", "b")]
    derived += [keys.self_mask_key(seed, r, n) for r in private for n in ("a", "b")]
    derived += [keys.commitment(seed, r, "a") for r in private]
    assert len(set(derived)) == len(derived)


def test_names_and_rounds_cannot_be_shifted_into_each_other() -> None:
    assert len({keys.pack("ab", "c"), keys.pack("a", "bc"), keys.pack("abc"), keys.pack("abc", "")}) == 4


def started() -> Round:
    return Round(words(5, 8), SETTINGS, round_id="r1")


def finish(one: Round, *stages: str) -> np.ndarray:
    for stage in stages:
        getattr(one, stage)()
    return one.coordinator.result()


def test_malformed_keys_count_as_none() -> None:
    for spoil in (
        lambda keys, _: replace(keys, masking=b"short"),
        lambda keys, _: replace(keys, encryption=bytes(32)),
        lambda keys, _: replace(keys, round_id="r0"),
        lambda keys, _: replace(keys, masking=keys.encryption),
        lambda _, other: other,
    ):
        one = started()
        for name in list(one.vectors):
            public = one.parties[name].advertise()
            if name == "c0":
                first = public
            one.coordinator.receive_keys(name, spoil(public, first) if name == "c1" else public)
        one.silent = {"advertise": ["c1"]}
        np.testing.assert_array_equal(
            finish(one, "share", "mask", "unmask"), total(one.vectors, {"c0", "c2", "c3", "c4"})
        )
        assert set(one.coordinator.refused) == {"c1"}


@pytest.mark.parametrize("spoil", [dict.clear, lambda s: s.update(c9=s["c2"]), lambda s: s.update(c2=b"short")])
def test_malformed_shares_count_as_none(spoil) -> None:
    one = started()
    one.advertise()
    for name, given in one.coordinator.neighbourhoods().items():
        shares = one.parties[name].share(given)
        if name == "c1":
            spoil(shares)
        one.coordinator.receive_shares(name, shares)
    one.silent = {"share": ["c1"]}
    np.testing.assert_array_equal(finish(one, "mask", "unmask"), total(one.vectors, {"c0", "c2", "c3", "c4"}))
    assert set(one.coordinator.refused) == {"c1"}


@pytest.mark.parametrize("wrong", [np.zeros(7, np.uint64), np.zeros(8), np.zeros(8, np.uint32)])
def test_malformed_vectors_count_as_none(wrong: np.ndarray) -> None:
    one = started()
    one.advertise()
    one.share()
    for name, inbox in one.coordinator.inboxes().items():
        masked = one.parties[name].mask(inbox, one.vectors[name])
        one.coordinator.receive_masked(name, wrong if name == "c1" else masked)
    one.silent = {"mask": ["c1"]}
    np.testing.assert_array_equal(finish(one, "unmask"), total(one.vectors, {"c0", "c2", "c3", "c4"}))
    assert set(one.coordinator.refused) == {"c1"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: replace(d, round_id="r0"),
        lambda d: replace(d, self_masks={}),
        lambda d: replace(d, mask_keys={"c2": b"x" * 16}),
        lambda d: replace(d, self_masks={**d.self_masks, "c2": b"short"}),
    ],
)
def test_malformed_disclosures_count_as_none(spoil) -> None:
    one = started()
    one.advertise()
    one.share()
    one.mask()
    for name, request in one.coordinator.unmask_requests().items():
        disclosure = one.parties[name].unmask(request)
        one.coordinator.receive_unmask(name, spoil(disclosure) if name == "c1" else disclosure)
    np.testing.assert_array_equal(one.coordinator.result(), total(one.vectors, one.vectors))
    assert set(one.coordinator.refused) == {"c1"}


@pytest.mark.parametrize(("dropped", "secret"), [([], "self_masks"), (["c4"], "mask_keys")])
def test_a_false_share_aborts_the_round_instead_of_a_wrong_sum(dropped: list[str], secret: str) -> None:
    one = started()
    one.silent = {"mask": dropped}
    one.advertise()
    one.share()
    one.mask()
    for name, request in one.coordinator.unmask_requests().items():
        disclosure = one.parties[name].unmask(request)
        if name == "c0":
            false = {owner: bytes(16) for owner in getattr(disclosure, secret)}
            disclosure = replace(disclosure, **{secret: false})
        one.coordinator.receive_unmask(name, disclosure)
    with pytest.raises(SecureSumAborted, match="do not give the secret"):
        one.coordinator.result()


def test_what_is_left_of_an_aborted_round_is_no_masked_sum() -> None:
    one = started()
    one.silent = {"unmask": ["c0", "c1", "c2"]}
    with pytest.raises(SecureSumAborted):
        one.run()
    assert not one.coordinator._total.any()
    shares = [share for sent in one.sent["unmask"].values() for share in sent.self_masks.values()]
    assert len(shares) == 10
    assert not any(share in pickle.dumps(one.coordinator) for share in shares)


def test_messages_of_strangers_twice_or_out_of_turn_are_a_mistake_of_the_caller() -> None:
    one = started()
    public = {name: party.advertise() for name, party in one.parties.items()}
    with pytest.raises(ValueError, match="c9 is not expected"):
        one.coordinator.receive_keys("c9", public["c0"])
    for name, given in public.items():
        one.coordinator.receive_keys(name, given)
    with pytest.raises(ValueError, match="or has sent one"):
        one.coordinator.receive_keys("c0", public["c0"])
    with pytest.raises(ValueError, match="the round is at keys"):
        one.coordinator.receive_masked("c0", one.vectors["c0"])
    with pytest.raises(ValueError, match="cannot be closed"):
        one.coordinator.inboxes()
    one.coordinator.neighbourhoods()
    with pytest.raises(ValueError, match="the round is at shares"):
        one.coordinator.receive_keys("c0", public["c0"])


def test_a_late_vector_is_refused_once_its_masks_may_be_known() -> None:
    one = started()
    one.advertise()
    one.share()
    inboxes = one.coordinator.inboxes()
    late = one.parties["c4"].mask(inboxes["c4"], one.vectors["c4"])
    for name in ("c0", "c1", "c2", "c3"):
        one.coordinator.receive_masked(name, one.parties[name].mask(inboxes[name], one.vectors[name]))
    one.silent = {"mask": ["c4"]}
    one.unmask()
    with pytest.raises(ValueError, match="the round is at unmask"):
        one.coordinator.receive_masked("c4", late)


def test_a_client_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="named twice"):
        Coordinator("r1", ["a", "b", "a"], SETTINGS, 3)


def test_disclosures_are_keyed_by_owner() -> None:
    one = started()
    one.run()
    assert all(isinstance(sent, Disclosure) for sent in one.sent["unmask"].values())
    # Every share of one owner differs by holder: nobody was given another's.
    for owner in one.vectors:
        shares = [sent.self_masks[owner] for sent in one.sent["unmask"].values()]
        assert len(set(shares)) == 5
