"""What tests of benchmarks share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def threads_as_before():
    """Puts PyTorch's threads and random numbers back, which a benchmark sets for its process."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
