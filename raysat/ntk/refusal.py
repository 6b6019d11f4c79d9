"""What a network is told for which there are no statistics."""

from __future__ import annotations

from raysat.validation import InputError


class NoStatistics(InputError):
    """A network has no NTK statistics. The message says why, names the module where it is known, and the remedy."""
