"""Statistics of the empirical neural tangent kernel at a parameter point, matrix-free."""

from raysat.ntk.kernel import KernelOperator
from raysat.ntk.lanczos import Eigenpair, largest_eigenpair
from raysat.ntk.statistics import NTKStatistics, ntk_statistics

__all__ = ["Eigenpair", "KernelOperator", "NTKStatistics", "largest_eigenpair", "ntk_statistics"]
