"""The columns of the tables, declared once: name, type, unit, and what each means.

`docs/columns.md` is this file as a page: `python -m raysat.schema > docs/columns.md`.
"""

from __future__ import annotations

from functools import cache

import pyarrow as pa

from raysat.spec.engines import ENGINES
from raysat.spec.goals import METRICS
from raysat.storage.initial import INITIAL, PREDICTING, Column
from raysat.storage.versions import KEY, present

SCHEMA_VERSION = present()
"""Stored in every part-file and in `sweep.json`. It rises with each step of `raysat.storage.versions`, which is needed
if a column's meaning changes or a column is removed."""

COMPLETED, TARGET_REACHED, BEATEN, DIVERGED, FAILED = "completed", "target_reached", "beaten", "diverged", "failed"
MEASURED = (COMPLETED, TARGET_REACHED, BEATEN)
FINISHED = (*MEASURED, DIVERGED)
"""The statuses of cells that are not run again; a failed cell is, and a beaten one no longer known to be worse."""

REFUSED = "refused"
"""The `method` if a network has no statistics. If computing them failed, it is `FAILED`."""


_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()

_WHERE = (
    Column("device", _TEXT, "", "`cpu`, or the GPU's name."),
    Column("hostname", _TEXT, "", "The machine that computed the row."),
    Column("threads", _INT, "", "CPU threads PyTorch used, of all ranks together; rounding on a CPU depends on it."),
    Column("raysat_version", _TEXT, "", "Version of raysat that computed the row; null if it is not installed."),
    Column("finished_at", pa.timestamp("us", tz="UTC"), "", "When the row was computed."),
    Column(
        "user_files",
        _TEXT,
        "",
        "The user's own files that were imported for the row, each with the digest of the parts that the row uses, as "
        "JSON (`raysat.user_code.identity`); null if there are none. If one changes, the next run of the sweep "
        "computes the row again.",
    ),
)

EVALUATION = (
    Column("train_loss", _REAL, "loss", "L(w_t) over evaluation_samples training samples."),
    Column(
        "train_accuracy", _REAL, "", "Fraction of these evaluation_samples classified correctly; null for regression."
    ),
    Column("test_loss", _REAL, "loss", "The loss over the n_test test samples; null without test samples."),
    Column("test_accuracy", _REAL, "", "Fraction of test samples classified correctly; null for regression."),
)

_REALS = pa.list_(pa.float64())

NTK = (
    Column("cell_id", _TEXT, "", "The cell whose weights they are, for a row of `ntk_at`; null at initialization."),
    Column("iteration", _INT, "iterations", "Iteration t whose w_t the statistics are of; 0 is the initialization."),
    *INITIAL,
    *EVALUATION,
    Column("gamma_tight", _REAL, "1/eta", "Smallest gamma of eq. 3.2, for C = 1, over dense_samples samples."),
    Column("lambda_min", _REAL, "1/eta", "lambda_min(K) over dense_samples samples; null if there are none."),
    Column("dense_samples", _INT, "samples", "Samples of the dense kernel."),
    Column(
        "kernel_drift",
        _REAL,
        "",
        "||K(w_t) - K(w_0)||_F / ||K(w_0)||_F over a fixed random subset of samples whose outputs number about 1,000.",
    ),
    Column("top", _REALS, "1/eta", "Largest eigenvalues of K, descending, as far as they have converged."),
    Column("residual_nodes", _REALS, "1/eta", "Spectral measure of K and the residual (Lanczos quadrature): nodes."),
    Column("residual_weights", _REALS, "loss", "Its weights, of sum ||r||^2 over the k_samples samples."),
    Column("density_nodes", _REALS, "1/eta", "Density of K's eigenvalues (stochastic Lanczos quadrature): nodes."),
    Column("density_weights", _REALS, "", "Its weights, of sum 1."),
    Column(
        "method",
        _TEXT,
        "",
        "How per-sample quantities were computed: by `gram` (layer rules), `jacobian`, `iteration` (many outputs) or "
        "`plain` (reverse mode, one sample at a time); `refused` if the network has no statistics, `failed` if an "
        "error ended them (the next run tries again).",
    ),
    Column(
        "method_reason",
        _TEXT,
        "",
        "Why layer rules do not apply: the layer without a rule, or the tied weight; or why there are no statistics.",
    ),
    Column("error", _TEXT, "", "The error, if computing the statistics failed; null otherwise."),
    Column("way", _TEXT, "", "How products with K were computed."),
    Column(
        "gamma_check",
        _REAL,
        "",
        "Certificate of gamma: the largest relative deviation of a sample's lambda_max(J_i J_i^T) from the Rayleigh "
        "quotient of its vector by plain autograd.",
    ),
    Column(
        "k_op_check",
        _REAL,
        "",
        "Certificate of k_op: the largest relative deviation of a product with K, and of k_op, from plain autograd.",
    ),
    Column(
        "k_op_upper",
        _REAL,
        "1/eta",
        "Upper bound of K's eigenvalues, wrong with a probability of 1 %: from a second, random start.",
    ),
    Column(
        "noise_check",
        _REAL,
        "",
        "Certificate of noise_scale: the largest deviation of gradient squares from plain autograd, relative to their "
        "mean.",
    ),
    Column(
        "kernel_check",
        _REAL,
        "",
        "Certificate of lambda_min and gamma_tight: relative deviation of the dense kernel from K on random vectors; "
        "null without one.",
    ),
    Column(
        "w0_digest",
        _TEXT,
        "",
        "Fingerprint of w_0, of parameters and buffers: a hash of their bytes, and two numbers that survive rounding "
        "(`raysat.models.fingerprint`). Each trial compares it with its own.",
    ),
    Column(
        "base_stepsize",
        _REAL,
        "eta",
        "If there are no statistics, the stepsize that replaces 1/beta(b) at every b under grid(auto=True): the "
        "inverse curvature of the loss along its gradient (`raysat.ntk.base_stepsize`); null otherwise.",
    ),
    Column("sample_bytes", _INT, "bytes", "Memory that the forward pass of one sample keeps for the backward pass."),
    Column("data_bytes", _INT, "bytes", "Size of the data set on the device."),
    Column("device_bytes", _INT, "bytes", "Memory of the GPU; null on a CPU."),
    Column("launch_seconds", _REAL, "s", "Time of an SGD step on the GPU apart from its samples; null on a CPU."),
    Column("sample_seconds", _REAL, "s", "Time that each sample of a batch adds to a step on the GPU; null on a CPU."),
    Column(
        "k_iterations",
        _INT,
        "products",
        "Products with K of the Lanczos run that found k_op; those for its start and certificate are not counted.",
    ),
    Column("seconds", _REAL, "s", "Wall time of the statistics."),
    *_WHERE,
)

TRIALS = (
    Column("cell_id", _TEXT, "", "Key of the cell: a hash of everything that can change its result."),
    Column(
        "status",
        _TEXT,
        "",
        "`completed`; `target_reached` (stopped at the sweep's target); `beaten` (stopped before it, since another "
        "stepsize reached it earlier); `diverged` (loss not finite, or above 1000 times loss_init); `failed` (tried "
        "again).",
    ),
    Column("error", _TEXT, "", "The error of a failed cell; null otherwise."),
    *INITIAL,
    Column("sampling", _TEXT, "", "`without_replacement`, `with_replacement` or `epochs`."),
    Column(
        "precision",
        _TEXT,
        "",
        "Precision of the matrix products in the steps: `full`, that of dtype; `tf32`; or `bfloat16`.",
    ),
    Column("batch_size", _INT, "samples", "Batch size b."),
    Column(
        "stepsize",
        _TEXT,
        "",
        "Stepsize (learning rate) policy: `fixed(eta)`, `fixed_fraction(c)`: c/beta(1), `theory(c)`: c/beta(b), `grid` "
        "and `grid_relative`: one of several, of which the best counts, the latter multiples of 1/beta(b) (of "
        "base_stepsize if there are no statistics).",
    ),
    Column(
        "training",
        _TEXT,
        "",
        "How it was trained, `sgd` or the differences from it: optimizer, schedule, scaling of the stepsize, noise, "
        "learners, the transform of batches (see `raysat.spec.training`); with an average, all that is measured is of "
        "the averaged weights. The NTK's prediction is for `sgd`.",
    ),
    Column("learners", _INT, "", "Learners p of asynchronous SGD; 1 for SGD."),
    Column("staleness", _REAL, "iterations", "Mean staleness of the gradients; 0 for SGD."),
    Column("eta", _REAL, "eta", "The stepsize used, scaled to the batch size if so set, before any schedule."),
    Column("beta", _REAL, "1/eta", "beta(b) of eq. 2.2 by Lemma 3.1, exact for the sampling used."),
    Column("eta_beta", _REAL, "", "eta beta(b): the stepsize in units of 1/beta(b), which the theory allows."),
    Column(
        "eta_limit",
        _REAL,
        "eta",
        "Stepsize up to which SGD on the linearized network is stable at this b "
        "(`raysat.saturation.recursion.stable_below`); without spectral measures 2/k_op, which is necessary at every "
        "b and exact at b = n. Null for other trainings than fixed-stepsize SGD.",
    ),
    Column("budget", _TEXT, "", "What ends a trial: `4000 iterations`, `60000 samples` or `10 epochs`."),
    Column("iterations", _INT, "iterations", "T as set; under a budget of samples, samples / b, rounded, at least 1."),
    Column("iterations_done", _INT, "iterations", "T done; less than `iterations` if the trial ended early."),
    Column("loss_final", _REAL, "loss", "L(w_T) over evaluation_samples samples, at T = iterations_done."),
    Column(
        "h",
        _REAL,
        "1/iterations",
        "Convergence exponent log(L(w_0)/L(w_T)) / T (section 5), T = iterations_done; null for a diverged trial. "
        "Depends on T.",
    ),
    Column(
        "train_accuracy",
        _REAL,
        "",
        "Fraction of the evaluation_samples classified correctly at w_T; null for regression.",
    ),
    Column("test_loss", _REAL, "loss", "The loss over the n_test test samples at w_T; null without test samples."),
    Column("test_accuracy", _REAL, "", "Fraction of test samples classified correctly at w_T; null for regression."),
    Column("distance_from_init", _REAL, "weights", "||w_T - w_0||, Euclidean over all parameters."),
    Column(
        "seconds",
        _REAL,
        "s",
        "Wall time of the trial, evaluations included, over all attempts that counted; for seeds trained as one "
        "computation (`stacked`), this seed's share.",
    ),
    Column("gpus", _REAL, "", "GPUs of the trial, or its fraction of one; 0 on a CPU."),
    Column("steps_per_second", _REAL, "1/s", "Iterations per second of the time spent in SGD steps."),
    Column(
        "engine",
        _TEXT,
        "",
        f"What computed the steps: {', '.join(f'`{name}`' for name in ENGINES)}, `parallel`, `asynchronous` or "
        "`optimizer` (see `raysat.sgd.engine`).",
    ),
    Column(
        "matmul",
        _TEXT,
        "",
        "Where the steps' matrix products were computed: `torch` (PyTorch's own), `mkl`, `onednn` or `onednn_all` "
        "(see `raysat.compute.matmul`).",
    ),
    Column(
        "micro_batch",
        _INT,
        "samples",
        "Samples of a batch whose gradient was computed at a time; below b if memory did not suffice for b.",
    ),
    Column("attempts", _INT, "", "Processes that worked on the cell: above 1 if it was retried or resumed."),
    *_WHERE,
)

CURVES = (
    Column("cell_id", _TEXT, "", "Key of the cell."),
    Column("iteration", _INT, "iterations", "Iteration t; 0 is the initialization."),
    Column("samples", _INT, "samples", "Samples used so far: t b, unless batches grow along the run."),
    Column("seconds", _REAL, "s", "Time spent in SGD steps so far, evaluations excluded; a share, as in `trials`."),
    *EVALUATION,
    Column("distance_from_init", _REAL, "weights", "||w_t - w_0||, Euclidean over all parameters."),
    Column(
        "gradient_square",
        _REAL,
        "loss/eta",
        "||grad L(w_t)||^2 over all n training samples; null unless the sweep has gradient_norm.",
    ),
    Column(
        "gradient_square_mean",
        _REAL,
        "loss/eta",
        "Its mean over the iterations 0..t-1, taken as linear between evaluations; at t = 0 itself.",
    ),
)

TABLES = {"trials": TRIALS, "curves": CURVES, "ntk": NTK}

_OF_TRIALS = {column.name: column for column in TRIALS}
_SETTING = ("dataset", "preprocessing", "n", "model", "model_options", "depth", "activation", "loss", "dtype")

ANALYSIS = (
    *(_OF_TRIALS[name] for name in (*_SETTING, "sampling", "iterations", "training", "width", "stepsize")),
    Column("tuning", _TEXT, "", "Of a grid: `free`, the best of all stepsizes, or `stable`, of those below eta_limit."),
    Column("quantity", _TEXT, "", "What was measured: `b_h` or `b_N`."),
    Column(
        "metric",
        _TEXT,
        "",
        f"The metric to whose target N counts: {', '.join(f'`{name}`' for name in METRICS)}; `train_loss` for b_h.",
    ),
    Column("target", _REAL, "loss", "The target to which N belongs: a value of the metric; null for b_h."),
    Column("headline", pa.bool_(), "", "Whether it is the b_h, or the one b_N of its metric, that the summary shows."),
    Column("value", _REAL, "samples", "The measured critical batch size; if null, `reason` says why."),
    Column("low", _REAL, "samples", "Lower end of its 95 % interval; 0 if it is below the search range."),
    Column("high", _REAL, "samples", "Upper end; infinite if it is above the search range."),
    Column("interval", _TEXT, "", "Source of the scatter: several `seeds`, or the `residuals` of one seed."),
    Column("q", _REAL, "", "How sharply the law bends there: (1 + (value/b)^q)^(1/q), by default 1."),
    Column("asymptote", _REAL, "", "h_inf (1/iterations) or N_inf (iterations) of the fit."),
    Column("rms_log_residual", _REAL, "", "Root mean square of log y - log fit: 0.05 is a scatter of 5 %."),
    Column("range", _REAL, "", "Largest over smallest mean of h or N over the batch sizes: how much it varies at all."),
    Column("seeds", _INT, "", "Seeds with a value."),
    Column("batch_sizes", _INT, "", "Batch sizes with a value."),
    Column("n_diverged", _INT, "trials", "Diverged trials of the reading; they are in no fit."),
    Column("n_failed", _INT, "trials", "Failed trials of the reading; they are in no fit."),
    Column(
        "n_infeasible",
        _INT,
        "trials",
        "Trials of the reading that ran all their iterations without reaching the target, and did not diverge (Shallue "
        "et al. 2019); 0 for b_h. In a race those that were cut are not among them, so that it is a lower bound.",
    ),
    Column("eta_beta_min", _REAL, "", "Smallest eta beta(b) of the trials that counted."),
    Column("eta_beta_max", _REAL, "", "Largest eta beta(b) of the trials that counted."),
    Column(
        "eta_k_op_max",
        _REAL,
        "",
        "Largest eta k_op of the trials that counted; the linearized model is unstable above 2.",
    ),
    Column("reason", _TEXT, "", "Reservations about the measured value, in words."),
    *(
        Column(name + end, _REAL, "1/eta", f"{what} {name} over the seeds.")
        for name in ("gamma", "k_op")
        for end, what in (("", "Mean"), ("_min", "Smallest"), ("_max", "Largest"))
    ),
    Column(
        "predictor",
        _TEXT,
        "",
        f"A column of `ntk` ({', '.join(f'`{name}`' for name in PREDICTING)}), or `forecast`: the same trials on the "
        "linearized network, tuned and fitted in the same way, for b_N as typical runs (`raysat.saturation.typical`).",
    ),
    Column("predicted", _REAL, "samples", "Its value: the mean over seeds; for the forecast, the fit to all seeds."),
    Column("predicted_min", _REAL, "samples", "The smallest over the seeds."),
    Column("predicted_max", _REAL, "samples", "The largest over the seeds."),
    Column("ratio", _REAL, "", "Predicted over measured value."),
    Column("remark", _TEXT, "", "Why there is no prediction, or what its ratio does not show, in words."),
)
"""The columns of `analysis.parquet`, which can be made from the tables again at any time."""


@cache
def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of `trials`, `curves`, `ntk` or `analysis`, units and meanings in its fields' metadata."""
    columns = ANALYSIS if table == "analysis" else TABLES[table]
    return pa.schema(
        [pa.field(c.name, _arrow_type(c), metadata={"unit": c.unit, "doc": c.doc}) for c in columns],
        metadata={KEY: str(present())},
    )


def _arrow_type(column: Column) -> pa.DataType:
    return pa.type_for_alias(column.type) if isinstance(column.type, str) else column.type
