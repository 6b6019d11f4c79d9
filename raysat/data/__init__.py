"""Data sets by name: found or downloaded, verified, cut to a subset and preprocessed."""

from raysat.data.dataset import Dataset
from raysat.data.linear import LinearProblem, linear_problem
from raysat.data.loading import NAMES, load
from raysat.data.preprocessing import preprocess

__all__ = ["NAMES", "Dataset", "LinearProblem", "linear_problem", "load", "preprocess"]
