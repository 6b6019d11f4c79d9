"""Data sets by name: found or downloaded, verified, reduced to a subset and preprocessed."""

from raysat.data.dataset import Dataset
from raysat.data.fields import Fields
from raysat.data.linear import LinearProblem, linear_problem
from raysat.data.loading import NAMES, forget_own, load
from raysat.data.preprocessing import preprocess
from raysat.data.sharing import load_shared
from raysat.data.sources import look_also_in, put

__all__ = [
    "NAMES",
    "Dataset",
    "Fields",
    "LinearProblem",
    "forget_own",
    "linear_problem",
    "load",
    "load_shared",
    "look_also_in",
    "preprocess",
    "put",
]
