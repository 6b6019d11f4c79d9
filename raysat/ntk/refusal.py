"""The error for a network without statistics."""

from __future__ import annotations

from raysat.errors import NoStatistics

__all__ = ["NoStatistics"]
