"""Whole files or none."""

from pathlib import Path

import pytest

from fedalign.report.atomic import write_bytes_atomic, write_json_atomic


def test_replaces_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    write_json_atomic(target, {"x": 1})
    write_json_atomic(target, {"x": "ε"})
    assert target.read_text(encoding="utf-8") == '{\n  "x": "ε"\n}\n'
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_a_number_that_json_lacks_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json_atomic(target, {"x": 1})
    with pytest.raises(ValueError):
        write_json_atomic(target, {"x": float("nan")})
    assert '"x": 1' in target.read_text()


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.bin"
    write_bytes_atomic(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_bytes_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
