"""What a user asks for: a `Sweep`, the cells that its axes span, and how each cell is trained."""

from raysat.spec.sweep import Sweep, powers_of_two

__all__ = ["Sweep", "powers_of_two"]
