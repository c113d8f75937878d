"""What a run was made on."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from fedalign.report.environment import environment, git_sha


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_says_seed_python_machine_and_versions() -> None:
    found = environment(7)
    assert found["seed"] == 7
    assert found["cpu_count"] >= 1
    assert found["versions"]["torch"] == metadata.version("torch")
    assert set(found["versions"]) == {"fedalign", "torch", "flwr", "numpy", "transformers"}
    assert {"python", "platform", "machine", "git_sha", "git_dirty"} <= set(found)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedalign.report.environment.PACKAGES", ("no-such-package",))
    assert environment(0)["versions"] == {"no-such-package": None}


def test_commit_of_a_checkout_but_not_of_untracked_files_inside_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "tracked").mkdir()
    (tmp_path / "installed").mkdir()
    (tmp_path / "tracked" / "a.py").touch()
    (tmp_path / "installed" / "a.py").touch()
    git(tmp_path, "add", "tracked")
    assert git_sha(tmp_path / "tracked") is None  # nothing committed yet
    git(tmp_path, "commit", "-q", "-m", "first")
    assert git_sha(tmp_path / "tracked") == git(tmp_path, "rev-parse", "HEAD")
    assert git_sha(tmp_path / "installed") is None


def test_no_git_and_no_checkout_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_sha(tmp_path) is None
    assert environment(0)["git_sha"] is None
