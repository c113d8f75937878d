"""The project around the code: packaging, tested versions, configs that describe themselves."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import itertools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fedalign

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))
PROGRAMS = [".ci/run", *(f"scripts/{path.name}" for path in sorted((ROOT / "scripts").iterdir()) if not path.suffix)]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def direct_requirements(project):
    extras = project["project"]["optional-dependencies"]
    return [Requirement(line) for line in itertools.chain(project["project"]["dependencies"], *extras.values())]


def test_version_is_the_packages(project):
    assert project["project"]["version"] == fedalign.__version__


def test_changelog_knows_the_version():
    assert re.search(
        rf"^## \[({re.escape(fedalign.__version__)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_every_direct_dependency_has_a_tested_version_in_its_range(project, constraints):
    for requirement in direct_requirements(project):
        # The tests need no account, so the one extra that is a service is not installed for them.
        if requirement.name == "wandb":
            continue
        tested = constraints.get(canonicalize_name(requirement.name))
        assert tested is not None, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(tested), f"constraints.txt: {requirement.name}=={tested} is out of range"


def test_tested_versions_are_plain(constraints):
    for name, version in constraints.items():
        assert name == canonicalize_name(name)
        assert Version(version).local is None, f"{name}=={version}: a local build exists on some machines only"


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_what_the_code_imports_is_declared(project):
    """A package that only comes along with another may go away with it."""
    distributions = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in direct_requirements(project)}
    for path in (ROOT / "fedalign").rglob("*.py"):
        for module in set(imported_modules(path)) - sys.stdlib_module_names - {"fedalign"}:
            # A module that is not installed (an extra) is looked up by its own name.
            names = {canonicalize_name(name) for name in distributions.get(module, [module])}
            assert names & declared, f"{path}: {module} is not declared"


def test_there_are_programs():
    assert {"scripts/setup", "scripts/run", "scripts/test"} < set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_executable_bash(program):
    path = ROOT / program
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_there_are_configs():
    assert len(CONFIGS) >= 15


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_config_describes_itself_and_every_value(path):
    # Hydra wants its own header, where there is one, before everything else.
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package ")]
    assert re.match(r"# \S", lines[0]), "the first line is what `fedalign list` shows"
    for above, line in itertools.pairwise(lines):
        if key := re.match(r"\s*([A-Za-z]\w*): *[^ #]", line):
            assert above.strip().startswith("# "), f"{key[1]}: no comment above"


@pytest.mark.slow
def test_built_distributions_carry_everything(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    installed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"fedalign/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in CONFIGS} <= installed
    assert {"fedalign/py.typed", "fedalign/deployment/templates/run.sh"} <= installed
    assert not any(name.startswith(("tests/", "simulations/", "conf/")) for name in installed)
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "constraints.txt", "conf/config.yaml", "tests/test_project.py", *PROGRAMS} <= shipped


@pytest.mark.slow
def test_flower_bundle_carries_the_code_and_the_configs_and_nothing_else():
    from flwr.cli.build import build_fab_from_disk

    bundled = set(zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))).namelist())
    assert {f"conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in CONFIGS} <= bundled
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "fedalign").rglob("*.py")} <= bundled
    assert {name.partition("/")[0] for name in bundled} <= {"fedalign", "conf", "pyproject.toml", ".info"}
