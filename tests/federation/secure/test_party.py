"""What a party refuses: attacks by the coordinator and by other parties."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fedalign.federation.secure.messages import UnmaskRequest
from fedalign.federation.secure.party import Party
from fedalign.federation.secure.settings import SecAgg
from tests.federation.secure.rounds import Round, stored_and_loaded, words

SETTINGS = SecAgg(bits=64, fraction_bits=32, neighbours=4, threshold=0.6, minimum=3)


def after(stage: str, round_id: str = "r1") -> Round:
    """Return a round of five in which everyone has answered ``stage``."""
    one = Round(words(5, 8), SETTINGS, round_id=round_id)
    for name in ("advertise", "share", "mask", "unmask"):
        getattr(one, name)()
        if name == stage:
            return one
    raise AssertionError(stage)


def ask(*survivors: int, dropped: tuple[int, ...] = (), round_id: str = "r1") -> UnmaskRequest:
    return UnmaskRequest(round_id, tuple(f"c{i}" for i in survivors), tuple(f"c{i}" for i in dropped))


def test_both_secrets_of_one_party_are_refused() -> None:
    party = after("mask").parties["c0"]
    with pytest.raises(ValueError, match=r"\['c1'\] cannot have both survived and dropped"):
        party.unmask(ask(0, 1, 2, 3, 4, dropped=(1,)))


@pytest.mark.parametrize("restarted", [False, True])
def test_both_secrets_of_one_party_are_refused_over_two_requests(restarted: bool) -> None:
    party = after("mask").parties["c0"]
    first = party.unmask(ask(0, 1, 2, 3, 4))
    party = stored_and_loaded(party) if restarted else party
    with pytest.raises(ValueError, match="another request to unmask was granted"):
        party.unmask(ask(0, 2, 3, 4, dropped=(1,)))
    assert party.unmask(ask(0, 1, 2, 3, 4)) == first


def test_a_party_discloses_one_share_for_each_and_never_of_its_own_key() -> None:
    party = after("mask").parties["c0"]
    disclosed = party.unmask(ask(0, 1, 2, dropped=(3, 4)))
    assert (set(disclosed.self_masks), set(disclosed.mask_keys)) == ({"c0", "c1", "c2"}, {"c3", "c4"})
    assert not set(disclosed.self_masks.values()) & set(disclosed.mask_keys.values())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask(0, 1, dropped=(2, 3, 4)), "2 of the neighbourhood of c0 survived, 3 needed"),
        (ask(1, 2, 3, 4, dropped=(0,)), "is asked to unmask but said to have dropped"),
        (ask(0, 1, 2, 3, 4, 9), r"others than it is asked about: \['c9'\]"),
        (ask(0, 1, 2, 3), r"others than it is asked about: \['c4'\]"),
        (ask(0, 1, 2, 3, 4, round_id="r0"), "round r0"),
    ],
)
def test_requests_that_the_protocol_does_not_allow_are_refused(request_: UnmaskRequest, message: str) -> None:
    party = after("mask").parties["c0"]
    with pytest.raises(ValueError, match=message):
        party.unmask(request_)
    party.unmask(ask(0, 1, 2, 3, 4))  # a refusal discloses nothing, so the right request is still granted


@pytest.mark.parametrize("restarted", [False, True])
def test_a_second_vector_under_the_same_masks_is_refused(restarted: bool) -> None:
    one = after("share")
    inbox = one.coordinator.inboxes()["c0"]
    party = one.parties["c0"]
    party.mask(inbox, one.vectors["c0"])
    party = stored_and_loaded(party) if restarted else party
    with pytest.raises(ValueError, match="asked to mask"):
        party.mask(inbox, one.vectors["c1"])
    assert party.seeds == {}  # nothing is left from which its masks follow


def test_stages_come_once_and_in_order() -> None:
    party = Party.create("c0", "r1", SETTINGS)
    for early in (lambda: party.share({}), lambda: party.mask({}, words(1, 1)["c0"]), lambda: party.unmask(ask(0))):
        with pytest.raises(ValueError, match="is at advertise"):
            early()
    party.advertise()
    with pytest.raises(ValueError, match="asked to advertise"):
        party.advertise()
    one = after("share")
    with pytest.raises(ValueError, match="asked to share"):
        one.parties["c0"].share({})


def shared() -> tuple[Party, dict[str, bytes], np.ndarray]:
    one = after("share")
    return one.parties["c0"], one.coordinator.inboxes()["c0"], one.vectors["c0"]


@pytest.mark.parametrize("place", [0, 12, 40, -1])
def test_tampered_shares_are_refused_and_name_their_sender(place: int) -> None:
    party, inbox, vector = shared()
    changed = bytearray(inbox["c2"])
    changed[place] ^= 1
    with pytest.raises(ValueError, match="the shares of c2 were changed"):
        party.mask({**inbox, "c2": bytes(changed)}, vector)


def test_shares_of_another_sender_recipient_or_round_are_refused() -> None:
    one = after("share")
    inboxes = one.coordinator.inboxes()
    party, inbox, vector = one.parties["c0"], inboxes["c0"], one.vectors["c0"]
    older = after("share", "r0").coordinator.inboxes()["c0"]
    for wrong in (inbox["c3"], inboxes["c1"]["c2"], one.sent["share"]["c0"]["c2"], older["c2"]):
        with pytest.raises(ValueError, match="the shares of c2 were changed, or are not for c0 in this round"):
            party.mask({**inbox, "c2": wrong}, vector)
    party.mask(inbox, vector)


@pytest.mark.parametrize("wrong", [b"", b"x" * 59, b"x" * 61, "x" * 60, None])
def test_shares_of_a_wrong_length_are_refused(wrong: object) -> None:
    party, inbox, vector = shared()
    with pytest.raises(ValueError, match="the shares of c2 have a wrong length"):
        party.mask({**inbox, "c2": wrong}, vector)  # type: ignore[dict-item]


def test_shares_of_strangers_and_too_small_inboxes_are_refused() -> None:
    party, inbox, vector = shared()
    for stranger in ("c9", "c0"):
        with pytest.raises(ValueError, match=f"{stranger} sent shares but is no neighbour of c0"):
            party.mask({**inbox, stranger: inbox["c1"]}, vector)
    with pytest.raises(ValueError, match="2 of the neighbourhood of c0 shared their secrets, 3 needed"):
        party.mask({"c1": inbox["c1"]}, vector)


@pytest.mark.parametrize("wrong", [np.zeros(8, np.uint32), np.zeros(8), np.zeros((2, 4), np.uint64)])
def test_vectors_of_another_kind_are_refused(wrong: np.ndarray) -> None:
    party, inbox, _ = shared()
    with pytest.raises(ValueError, match="64-bit words expected"):
        party.mask(inbox, wrong)


def test_the_vector_is_not_changed() -> None:
    party, inbox, vector = shared()
    before = vector.copy()
    party.mask(inbox, vector)
    np.testing.assert_array_equal(vector, before)


def test_bad_public_keys_are_refused_and_name_their_sender() -> None:
    one = after("advertise")
    given = one.coordinator.neighbourhoods()["c0"]
    own, theirs = one.sent["advertise"]["c0"], given["c2"]
    cases = {
        "the keys of c2: encryption is not 32 bytes": replace(theirs, encryption=b"x" * 31),
        "the keys of c2: masking is not 32 bytes": replace(theirs, masking="x" * 32),  # type: ignore[arg-type]
        "a public key of c2 is a point of low order": replace(theirs, encryption=bytes(32)),
        "the keys of c2 are of round r0": replace(theirs, round_id="r0"),
        "a key of c2 is a key of c0": replace(theirs, masking=own.masking),
        "a key of c2 is a key of c0 *": own,
        "a key of c2 is a key of c1": given["c1"],
        "a key of c2 is a key of c2": replace(theirs, masking=theirs.encryption),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            one.parties["c0"].share({**given, "c2": wrong})
    with pytest.raises(ValueError, match="c0 was named its own neighbour"):
        one.parties["c0"].share({**given, "c0": replace(theirs, encryption=b"a" * 32, masking=b"b" * 32)})
    with pytest.raises(ValueError, match="1 neighbours given to c0, at least 2"):
        one.parties["c0"].share({"c1": given["c1"]})
    one.parties["c0"].share(given)


def test_a_masking_key_of_low_order_is_refused_when_it_is_used() -> None:
    one = after("advertise")
    for name, given in one.coordinator.neighbourhoods().items():
        if name == "c0":
            given["c2"] = replace(given["c2"], masking=bytes(32))
        one.coordinator.receive_shares(name, one.parties[name].share(given))
    with pytest.raises(ValueError, match="a public key of c2 is a point of low order"):
        one.parties["c0"].mask(one.coordinator.inboxes()["c0"], one.vectors["c0"])


def test_a_wiped_party_holds_nothing_and_does_nothing() -> None:
    one = after("mask")
    party = one.parties["c0"]
    secrets = [share for pair in party.held.values() for share in pair if share]
    party.wipe()
    assert not any(secret.hex().encode() in party.to_bytes() for secret in secrets)
    with pytest.raises(ValueError, match="is at wiped"):
        party.unmask(ask(0, 1, 2, 3, 4))


def test_secrets_are_not_in_the_text_of_a_party() -> None:
    party = Party.create("c0", "r1", SETTINGS)
    assert not any(seed.hex() in repr(party) or repr(seed) in repr(party) for seed in party.seeds.values())


def test_secrets_and_keys_are_fresh_in_every_round() -> None:
    np.random.seed(0)  # noqa: NPY002, a global seed must not reach the secrets
    parties = [Party.create("c0", "r1", SETTINGS) for _ in range(3)]
    np.random.seed(0)  # noqa: NPY002
    parties += [Party.create("c0", "r1", SETTINGS) for _ in range(3)]
    seeds = [seed for party in parties for seed in party.seeds.values()]
    assert len(set(seeds)) == len(seeds) == 18
    advertised = [party.advertise() for party in parties]
    for one, other in itertools.combinations(advertised, 2):
        assert not {one.encryption, one.masking, one.commitment} & {other.encryption, other.masking, other.commitment}
