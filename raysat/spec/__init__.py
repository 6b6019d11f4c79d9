"""What is asked: a `Sweep`, the cells that are the product of its axes, and how each is trained."""

from raysat.spec.sweep import Sweep, powers_of_two

__all__ = ["Sweep", "powers_of_two"]
