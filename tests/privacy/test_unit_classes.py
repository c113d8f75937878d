"""Classes of units by what they were in."""

from fedalign.privacy.unit_classes import signatures


def test_units_that_were_in_the_same_are_one_class_and_there_is_one_for_none():
    sources = [{"a": 1, "b": 1}, {"b": 2, "c": 2, "d": 3}]
    assert signatures(sources) == {(), ((0, 1),), ((0, 1), (1, 2)), ((1, 2),), ((1, 3),)}
    assert signatures([]) == {()}
