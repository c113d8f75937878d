"""One line out of what Ray 2.55 says of workers that died in different ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedalign.engines.ray_reasons import last_words, reason_of

DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n\tpid: 24325\n\tip: 192.0.2.2\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
)
KILLED = (
    f"{DIED}Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the "
    "process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called."
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (KILLED, "Worker unexpectedly exits with a connection error code 2. End of file"),
        (f"{DIED}Worker exits with an exit code 3.", "Worker exits with an exit code 3"),
        ("The actor died in its creation task:\nTraceback\n  File\nModuleNotFoundError: No module named 'x'\n\n",
         "ModuleNotFoundError: No module named 'x'"),
        ("one\ntwo\n", "two"),
        ("", "no reason is known"),
    ],
)  # fmt: skip
def test_the_telling_line_is_found(text: str, reason: str) -> None:
    assert reason_of(text) == reason


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (":job_id:01\n:actor_name:Worker\n", ""),
        (":job_id:01\nCUDA error: device-side assert\n\n", "CUDA error: device-side assert"),
        ("[2026-11-29 E 24326] logging.cc:474: SIGSEGV\nFatal Python error: Segmentation fault\n\n  File x, line 3\n"
         "Extension modules: numpy (total: 1)\n", "Fatal Python error: Segmentation fault"),
    ],
)  # fmt: skip
def test_a_worker_s_last_words_are_its_own(tmp_path: Path, written: str, words: str) -> None:
    log = tmp_path / "worker-1.err"
    log.write_text(written)
    assert last_words(log) == words


def test_no_log_no_words(tmp_path: Path) -> None:
    assert last_words(tmp_path / "worker-1.err") == ""
    assert last_words(Path("/dev/null")) == ""
