"""What a secure sum is to a guarantee: how many clients it hides a contribution among."""

from __future__ import annotations

from abc import ABC


class SecureSum(ABC):
    """Settings of a secure sum; the ``privacy/secure`` config group.

    Attributes
    ----------
    minimum : int
        Fewest clients whose sum may be seen; a round with fewer is given up.
    """

    minimum: int
