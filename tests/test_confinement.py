"""What a server can make a node open: its own data, what the operator allows, and nothing else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.cli import main
from fedalign.config import conf_directory, options, resolve, to_json
from fedalign.confinement import PATHS, confine
from fedalign.errors import DataError, UserError
from fedalign.site import open_node_site, open_site
from tests.language_models import random_model
from tests.tiny import TINY, use_cache

OWN = "/site/own.jsonl"


def config(*overrides: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(to_json(resolve(list(overrides))))
    return content


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from strings(part, f"{key}.{name}")
    elif isinstance(value, str):
        yield key, value


@pytest.mark.parametrize("data", ["pairs_file", "pairs_file_corpus", "pairs_file_rankings", "hh_rlhf_corpus"])
def test_every_path_of_the_data_becomes_the_node_s_own(data: str) -> None:
    method = {"pairs_file": "fedvpa", "pairs_file_rankings": "emdpo"}.get(data, "dprlhf")
    sent = config(f"method={method}", f"data={data}", "data.path=/etc/passwd")
    assert "/etc/passwd" in dict(strings(sent)).values()
    held = dict(strings(confine(sent, OWN, [])))
    assert "/etc/passwd" not in held.values()
    assert {value for key, value in held.items() if key.endswith(".path")} == {OWN}


def test_a_path_beneath_data_that_only_the_server_knows_is_replaced_too() -> None:
    sent = config("method=dprlhf", "data=pairs_file_corpus")
    sent["data"]["source"]["path"] = "/etc/shadow"
    assert "/etc/shadow" not in dict(strings(confine(sent, OWN, []))).values()


@pytest.mark.parametrize(
    "path", ["/etc", "~/secrets", "../other", "a/../../b", "./here", "C:\\secrets", "a/b/c", "tests", ".ssh", "x\0y"]
)
def test_no_model_outside_the_operator_s_directory_is_opened(path: str) -> None:
    sent = config("method=dprlhf", "data=texts_file")
    sent["model"]["model"] = path
    with pytest.raises(UserError, match=r"model\.model=.* is a local path"):
        confine(sent, OWN, [])


def test_models_of_the_operator_s_directory_and_of_the_hub_may_be_named(tmp_path: Path) -> None:
    sent = config("method=dprlhf", "data=texts_file")
    assert confine(sent, OWN, [])["model"]["model"] == "openai-community/gpt2"
    (tmp_path / "models").mkdir()
    sent["model"]["model"] = str(tmp_path / "models" / "gpt2")
    assert confine(sent, OWN, [tmp_path / "models"])["model"] == sent["model"]
    with pytest.raises(UserError, match="is a local path"):
        confine(sent, OWN, [tmp_path / "others"])
    (tmp_path / "models" / "way-out").symlink_to("/etc")
    sent["model"]["model"] = str(tmp_path / "models" / "way-out")
    with pytest.raises(UserError, match="is a local path"):
        confine(sent, OWN, [tmp_path / "models"])


@pytest.mark.slow
@pytest.mark.parametrize("group", ["method", "data", "encoder", "model", "experiment"])
def test_no_shipped_choice_is_refused(group: str) -> None:
    for name in options()[group]:
        try:
            sent = config(f"{group}={name}")
        except UserError:
            continue  # it needs a choice besides
        confine(sent, OWN, [])


def test_keys_that_name_files_are_known() -> None:
    """Whatever a shipped comment calls a folder, a file or a hub name is confined."""
    lines = [line for path in conf_directory().rglob("*.yaml") for line in path.read_text().splitlines()]
    named = {
        below.split(":")[0].strip()
        for above, below in itertools.pairwise(lines)
        if above.strip().startswith("#")
        and any(word in above.lower() for word in ("# folder", "hub name", "# the file"))
        and ":" in below
        and not below.strip().startswith(("#", "_target_"))
    }
    assert {"path", "model", "paths"} <= named <= PATHS


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*sorted(PATHS), "a"]), inner),
        max_leaves=12,
    )
)
def test_whatever_is_sent_is_confined_or_refused(value: Any) -> None:
    try:
        held = confine({"data": {"path": "/etc"}, "model": value}, OWN, [])
    except UserError:
        return
    for key, text in strings(held):
        if any(part in PATHS for part in key.split(".")):
            assert text == OWN or not text.startswith(("/", "~", "."))


def test_a_site_follows_the_configuration_that_was_agreed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_cache(tmp_path, monkeypatch)
    agreed = tmp_path / "agreed.json"
    assert main(["run", "--print-config", *TINY]) == 0
    agreed.write_text(capsys.readouterr().out)
    policy = {"partition-id": 0, "agreed-config": str(agreed)}
    assert open_node_site(to_json(resolve([*TINY, "output=elsewhere"])), policy).phases
    for change in ("seed=3", "privacy=central"):
        with pytest.raises(UserError, match=f"agreed to another configuration .*{change.split('=')[0]}.* differ"):
            open_node_site(to_json(resolve([*TINY, change])), policy)
    agreed.write_text("[]")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        open_node_site(to_json(resolve([*TINY])), policy)


def test_a_deployed_node_says_which_data_it_reads() -> None:
    with pytest.raises(UserError, match="this node has no data"):
        open_node_site(json.dumps(config()), {})


def test_what_a_site_s_own_data_say_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    own = tmp_path / "own.jsonl"
    own.write_text('{"group": "g", "question": "q", "options": ["a", "b"], "distribution": "SECRET"}\n')
    sent = to_json(resolve(["data=survey_file", *TINY[4:]]))
    with pytest.raises(DataError, match="SECRET"):
        open_site(sent, {"data-path": str(own)})


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"data": 3}', '{"data": {}}'])
def test_a_configuration_that_is_none_is_a_user_s_error(text: str) -> None:
    with pytest.raises(UserError):
        open_site(text, {"data-path": OWN})


@pytest.mark.slow
def test_a_model_folder_of_the_operator_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    model = random_model("gpt2", tmp_path / "models" / "gpt2")
    own = tmp_path / "own.jsonl"
    rows = [{"prompt": f"say {n}", "response": f"words {n}", "user": f"u{n % 6}"} for n in range(60)]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["method=dprlhf", "data=texts_file", f"model.model={model}", "partition=users"]
    sent = to_json(resolve(overrides))
    with pytest.raises(UserError, match="is a local path"):
        open_site(sent, {"data-path": str(own)})
    site = open_site(sent, {"data-path": str(own), "model-path": str(tmp_path / "models")})
    assert site.discreet
