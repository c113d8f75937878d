"""Whatever a file holds, a loader and the check say the same of it, and neither ends in anything but a UserError."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from fedalign.data_check.check import check_file
from fedalign.data_check.kinds import KINDS
from fedalign.errors import UserError
from fedalign.rng import Streams

from .files import GOOD, SUFFIXES, content_of, mutated_files

RELAXED = [
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.large_base_example,
    HealthCheck.data_too_large,
]


def agree(directory: Path, kind: str, suffix: str, content: bytes) -> bool:
    """Return whether the file is refused, by both alike."""
    path = directory / f"file{suffix}"
    path.write_bytes(content)
    try:
        KINDS[kind].source(path).load(Streams(0))
        refused = False
    except UserError:
        refused = True
    report = check_file(path, kind)
    assert report.refused is refused, (content[:300], report.of_level("error"))
    report.to_json()
    try:
        check_file(path)
    except UserError as error:
        assert len(str(error)) < 5000
    return refused


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", GOOD)
def test_what_is_right_is_taken(tmp_path: Path, kind: str, suffix: str) -> None:
    content = content_of(GOOD[kind], suffix)
    assert content is not None
    assert not agree(tmp_path, kind, suffix, content)
    assert check_file(tmp_path / f"file{suffix}").kind == kind


@settings(max_examples=100, deadline=None, suppress_health_check=RELAXED)
@given(mutated_files())
def test_mutated_files(tmp_path: Path, file: tuple[str, str, bytes]) -> None:
    agree(tmp_path, *file)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=RELAXED)
@given(mutated_files())
def test_many_mutated_files(tmp_path: Path, file: tuple[str, str, bytes]) -> None:
    agree(tmp_path, *file)
