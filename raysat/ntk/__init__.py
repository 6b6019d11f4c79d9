"""Statistics of the empirical neural tangent kernel at a parameter point, matrix-free."""

from raysat.ntk.kernel import KernelOperator
from raysat.ntk.lanczos import largest_eigenpairs, tridiagonalize
from raysat.ntk.per_sample import Method
from raysat.ntk.refusal import NoStatistics
from raysat.ntk.spectrum import Measure, dense_kernel, spectral_density, spectral_measure, tight_gamma
from raysat.ntk.statistics import NTKStatistics, coupling, gradient_square, ntk_statistics, reason_against

__all__ = [
    "KernelOperator",
    "Measure",
    "Method",
    "NTKStatistics",
    "NoStatistics",
    "coupling",
    "dense_kernel",
    "gradient_square",
    "largest_eigenpairs",
    "ntk_statistics",
    "reason_against",
    "spectral_density",
    "spectral_measure",
    "tight_gamma",
    "tridiagonalize",
]
