"""Statistics of the empirical neural tangent kernel at a parameter point, matrix-free."""

from raysat.ntk.dense import dense_kernel
from raysat.ntk.kernel import KernelOperator, Products
from raysat.ntk.lanczos import largest_eigenpairs, tridiagonalize
from raysat.ntk.per_sample import Method
from raysat.ntk.refusal import NoStatistics
from raysat.ntk.rules import Outer, register_rule
from raysat.ntk.spectrum import Measure, spectral_density, spectral_measure, tight_gamma
from raysat.ntk.statistics import NTKStatistics, gradient_square, ntk_statistics, reason_against

__all__ = [
    "KernelOperator",
    "Measure",
    "Method",
    "NTKStatistics",
    "NoStatistics",
    "Outer",
    "Products",
    "dense_kernel",
    "gradient_square",
    "largest_eigenpairs",
    "ntk_statistics",
    "reason_against",
    "register_rule",
    "spectral_density",
    "spectral_measure",
    "tight_gamma",
    "tridiagonalize",
]
