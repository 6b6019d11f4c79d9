"""The columns that `trials` and `ntk` have in common: the settings of an initialization, and its statistics.

A new statistic is a field of `raysat.ntk.NTKStatistics` and an entry here: trials inherit it, and if it `predicts` the
critical batch size, it is a predictor of the analysis and of the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa  # takes a quarter of a second to load, and not every use of raysat needs it


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its name.
        type: Its Arrow type, or the name of that.
        unit: Its unit; empty if it has none.
        doc: Its meaning.
        found: Whether it is a result (a statistic), and not a setting of the initialization.
        predicts: Its name as a prediction of the critical batch size; empty if it is none.
    """

    name: str
    type: pa.DataType | str
    unit: str
    doc: str
    found: bool = False
    predicts: str = ""


_TEXT, _INT, _REAL = "string", "int64", "double"

INITIAL = (
    Column("init_id", _TEXT, "", "Key of the initialization's statistics: a hash of everything they depend on."),
    Column("sweep", _TEXT, "", "Name of the sweep."),
    Column("dataset", _TEXT, "", "Data set, by name or import path."),
    Column("preprocessing", _TEXT, "", "`none`, `center`, `standardize` or `unit_norm`."),
    Column("n", _INT, "samples", "Training samples used."),
    Column("n_test", _INT, "samples", "Test samples used."),
    Column(
        "evaluation_samples",
        _INT,
        "samples",
        "Training samples over which the loss is evaluated along a run: n, or fewer if the sweep sets it.",
    ),
    Column("n_outputs", _INT, "", "Outputs C of the network.", found=True),
    Column("model", _TEXT, "", "Architecture, by name or import path."),
    Column("model_options", _TEXT, "", "The architecture's options as JSON: gains, depth, activation."),
    Column("depth", _INT, "layers", "Hidden layers; null if the architecture has no such option."),
    Column("width", _INT, "", "Hidden width; 0 if the architecture has none."),
    Column("activation", _TEXT, "", "Activation; null if the architecture has no such option."),
    Column("parameters", _INT, "", "Trainable parameters p.", found=True),
    Column("dtype", _TEXT, "", "Floating-point type of weights, data and statistics."),
    Column("seed", _INT, "", "Seed of weights and batches."),
    Column(
        "loss",
        _TEXT,
        "",
        "Loss of a sample: `mse` (eq. 2.1), `cross_entropy`, or the import path of one of the user's own.",
    ),
    Column(
        "loss_init",
        _REAL,
        "loss",
        "L(w_0): 1/(2n) sum_i ||f(w_0, x_i) - y_i||^2 (eq. 2.1) for `mse`, over all n samples in `ntk`, over "
        "evaluation_samples of them in `trials`.",
        found=True,
    ),
    Column("gamma", _REAL, "1/eta", "max_i lambda_max(J_i J_i^T) over all n samples, at w_0 (Lemma 3.1).", found=True),
    Column("gamma_mean", _REAL, "1/eta", "The mean over i of lambda_max(J_i J_i^T), at w_0.", found=True),
    Column(
        "gamma_frobenius",
        _REAL,
        "1/eta",
        "max_i ||J_i||_F^2, up to C times larger than gamma; null by iteration.",
        found=True,
    ),
    Column(
        "k_op", _REAL, "1/eta", "lambda_max(K), K = (1/n) J J^T the NTK over k_samples samples, at w_0.", found=True
    ),
    Column(
        "k_op_residual",
        _REAL,
        "",
        "Relative residual ||Kv - k_op v|| / k_op of the unit eigenvector found.",
        found=True,
    ),
    Column(
        "k_samples",
        _INT,
        "samples",
        "Samples over which K was taken: all n, or a fixed random subset of them.",
        found=True,
    ),
    Column(
        "b_star",
        _REAL,
        "samples",
        "Critical batch size gamma / k_op (Theorems 1.1, 4.2).",
        found=True,
        predicts="b_star",
    ),
    Column(
        "b_star_thm33",
        _REAL,
        "samples",
        "Critical batch size 4 gamma / k_op with Theorem 3.3's constants.",
        found=True,
        predicts="4 gamma/k_op",
    ),
    Column(
        "noise_scale",
        _REAL,
        "samples",
        "tr(Sigma) / ||grad L||^2 at w_0, Sigma the covariance of the per-sample gradients over all n samples "
        "(B_simple of McCandlish et al. 2018).",
        found=True,
        predicts="noise scale",
    ),
    Column("statistics_dtype", _TEXT, "", "Floating-point type in which the statistics were computed.", found=True),
    Column(
        "frozen_norms",
        _TEXT,
        "",
        "Layers whose batch statistics were held constant, at those of the training set: the NTK statistics are then "
        "an approximation. Names separated by commas; empty if there are none.",
        found=True,
    ),
    Column(
        "off",
        _TEXT,
        "",
        "Random layers, such as Dropout, that were turned off for the statistics but not for the steps. Names "
        "separated by commas; empty if there are none.",
        found=True,
    ),
)

ASKED = tuple(column.name for column in INITIAL if not column.found)
"""The columns of settings."""

INHERITED = tuple(column.name for column in INITIAL if column.found)
"""The columns that a trial's row takes from the statistics of its initialization."""

PREDICTING = {column.name: column.predicts for column in INITIAL if column.predicts}
"""The statistics that predict the critical batch size: the name of each for a reader, by column."""
