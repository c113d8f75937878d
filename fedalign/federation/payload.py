"""How many bytes a client sends in a round, known before it does: from what the phase adds up and how that travels."""

from __future__ import annotations

import math
from typing import Any

from fedalign.compression.base import Compression
from fedalign.contribution import DELTA, State
from fedalign.federation.custodian import extra_names
from fedalign.federation.vectors import word_code
from fedalign.methods.base import Phase
from fedalign.privacy.base import Privacy
from fedalign.privacy.protection import Protection
from fedalign.template import Template

_NUMBER_BYTES, _SCALAR_BYTES = 4, 8


def reply_bytes(phase: Phase[Any], travels: State, compression: Compression, privacy: Privacy) -> int:
    """Return the size of one client's reply to a round of training, without Flower's framing.

    Exact up to metrics (eight bytes each), keys and shares of secure sums, and statistics that are not of four bytes.
    For a phase that does not say what it adds up, a delta for every floating tensor of the state is taken.

    Parameters
    ----------
    phase : Phase
    travels : State
        What of the state the clients are sent.
    compression : Compression
    privacy : Privacy
    """
    template = phase.template(travels)
    if template is None:
        template = Template.of_deltas({name: t for name, t in travels.items() if t.is_floating_point()})
    code = word_code(privacy) if isinstance(privacy, Protection) else None
    if code is not None and isinstance(privacy, Protection):
        return code.length(template.size + len(extra_names(privacy))) * code.settings.bits // 8
    total = _SCALAR_BYTES
    for name, shape in template.tensors.items():
        numbers, size = math.prod(shape), _NUMBER_BYTES
        if name.startswith(DELTA):
            compressed = compression.tensor_bytes(numbers)
            if compressed is not None:
                total += compressed
                continue
            own = travels.get(name.removeprefix(DELTA))
            # What a guarantee has bounded travels in single precision.
            if own is not None and not isinstance(privacy, Protection):
                size = own.element_size()
        total += numbers * size
    return total
