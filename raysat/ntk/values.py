"""The result type of the statistics, whose fields are named like their columns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NTKStatistics:
    """The statistics of a network, by the names of their columns (see `docs/columns.md`).

    Under the cross-entropy, J_i stands for `S_i^T J_i`, where `S_i S_i^T` is the Hessian of the sample's loss in its
    outputs: K is the kernel of the generalized Gauss-Newton matrix. This goes beyond the paper's theorem.

    Attributes:
        n: Samples over which gamma, loss and noise scale were taken.
        n_outputs: Outputs per sample, or per position of a sequence, C.
        parameters: Trainable parameters p.
        loss_init: The mean loss (eq. 2.1 for the squared error); NaN without targets.
        gamma: `max_i lambda_max(J_i J_i^T)`: the sharp constant in `||J_i^T r||^2 <= gamma ||r||^2` (Lemma 3.1).
        gamma_mean: The mean of `lambda_max(J_i J_i^T)` over the samples.
        gamma_frobenius: `max_i ||J_i||_F^2`; NaN by iteration.
        gamma_tight: The smallest gamma of eq. 3.2, for C = 1, over `dense_samples` samples; NaN otherwise.
        k_op: `lambda_max(K)`, `K = (1/n) J J^T` over `k_samples` samples.
        k_op_residual: `||K v - k_op v|| / k_op`.
        k_samples: Samples over which K was taken.
        k_iterations: Products with K in the search for k_op.
        lambda_min: `lambda_min(K)` of `dense_samples` samples; NaN if there are none.
        dense_samples: Samples of the dense kernel.
        b_star: `gamma / k_op` (Theorems 1.1, 4.2).
        b_star_thm33: `4 gamma / k_op` (Theorem 3.3).
        noise_scale: `tr(Sigma) / ||grad L||^2` (McCandlish et al. 2018, B_simple); NaN without targets.
        top: Largest eigenvalues of K, descending, down to the first that has not converged to the tolerance.
        residual_nodes: Nodes of the spectral measure of K and the initial residual.
        residual_weights: Their weights, of sum `||r||^2` over the k_samples samples.
        density_nodes: Nodes of the density of K's eigenvalues.
        density_weights: Their weights, of sum 1.
        method: How the per-sample quantities were computed (`raysat.ntk.per_sample.Method`).
        method_reason: Why layer rules do not cover some parameters, or why faster implementations were not confirmed;
            empty if they were, or were not tried.
        way: How products with K were computed (`raysat.ntk.kernel.Products`).
        gamma_check: Largest relative difference of an operator norm from plain autograd, over the sample with the
            largest one and two random samples.
        k_op_check: Relative difference of `u^T K u` from plain autograd, u the sum of k_op's eigenvector and a random
            vector.
        k_op_upper: Upper bound of K's eigenvalues, which fails with probability 1 % (`raysat.ntk.lanczos.excess`).
        noise_check: Largest difference from plain autograd of a per-sample gradient square, and of ||grad L||^2 over
            some samples, relative to the mean gradient square; NaN without targets.
        kernel_check: Relative difference of the dense kernel from plain autograd on random vectors; NaN without it.
        statistics_dtype: Dtype of the computation: that of the weights, but float32 for bfloat16 and float16.
        frozen_norms: Batch normalization layers whose statistics were frozen at those of the samples, separated by
            commas; all statistics are then approximations (`raysat.ntk.batchnorm`).
        off: Random layers that were turned off, separated by commas.
    """

    n: int
    n_outputs: int
    parameters: int
    loss_init: float
    gamma: float
    gamma_mean: float
    gamma_frobenius: float
    gamma_tight: float
    k_op: float
    k_op_residual: float
    k_samples: int
    k_iterations: int
    lambda_min: float
    dense_samples: int
    b_star: float
    b_star_thm33: float
    noise_scale: float
    top: tuple[float, ...]
    residual_nodes: tuple[float, ...]
    residual_weights: tuple[float, ...]
    density_nodes: tuple[float, ...]
    density_weights: tuple[float, ...]
    method: str
    method_reason: str
    way: str
    gamma_check: float
    k_op_check: float
    k_op_upper: float
    noise_check: float
    kernel_check: float
    statistics_dtype: str
    frozen_norms: str
    off: str
