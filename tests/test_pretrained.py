"""Loading from a folder: a padding token in any case, evaluation mode, precision, errors of one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedalign.errors import UserError
from fedalign.pretrained import first_line, load_network, load_tokenizer
from tests.language_models import random_model


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(random_model("gpt2", tmp_path), "encoder.model")
    assert tokenizer.pad_token == tokenizer.eos_token == "<end>"


def test_a_network_comes_quietly_and_in_evaluation_mode(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModel

    folder = random_model("gpt2", tmp_path)
    capfd.readouterr()
    network = load_network(folder, AutoModel, "bfloat16", "cpu", "encoder.model")
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert capfd.readouterr().err == ""


def test_errors_name_the_key_and_keep_to_one_line(tmp_path: Path) -> None:
    from transformers import AutoModel

    with pytest.raises(UserError, match=r"^judge\.model=.*: cannot be loaded on cpu") as error:
        load_network(tmp_path, AutoModel, "float32", "cpu", "judge.model")
    assert "\n" not in str(error.value)
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(ValueError()) == "ValueError"
