"""The losses of a sample, each with what the statistics need: its gradient and a factor of its Hessian.

A loss is a function of the network's output for one sample. `mse` is the paper's (eq. 2.1). `cross_entropy` and a loss
of the user's own go beyond its theorem: the curvature that replaces the kernel is the generalized Gauss-Newton matrix
`(1/n) J^T H J`, H the loss's Hessian in the outputs at w_0, whose nonzero eigenvalues are those of the kernel
`(1/n) S^T J J^T S` with `H = S S^T`. For `mse`, H = S = I.

`loss.factor(outputs, y, u)` is `S u` and `loss.factor_transposed(outputs, y, u)` is `S^T u`, sample by sample: u has
the outputs' shape, or further dimensions before it for several u at once. Without targets, y = None, every sample and
class weighs 1.
"""

from raysat.losses.accuracy import hits
from raysat.losses.builtin import CrossEntropy, SquaredError
from raysat.losses.custom import Custom
from raysat.losses.names import LOSSES, Loss, resolve
from raysat.losses.targets import as_targets

__all__ = ["LOSSES", "CrossEntropy", "Custom", "Loss", "SquaredError", "as_targets", "hits", "resolve"]
