"""The networks that users bring, one small case for each kind, with the network whose Jacobian is meant."""

from . import attention, classes, control, hugging_face, inplace, layers, recurrent, refused, reparametrized, shapes
from .case import CASES, Case, cast

__all__ = [
    "CASES",
    "Case",
    "attention",
    "cast",
    "classes",
    "control",
    "hugging_face",
    "inplace",
    "layers",
    "recurrent",
    "refused",
    "reparametrized",
    "shapes",
]
