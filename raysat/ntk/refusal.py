"""What a network is told for which there are no statistics."""

from __future__ import annotations

from raysat.errors import NoStatistics

__all__ = ["NoStatistics"]
