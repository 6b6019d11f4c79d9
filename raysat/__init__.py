"""How large a batch is worth using for this model on these data?

raysat predicts it from the neural tangent kernel at initialization, measures it by training, and compares the two.
"""

from raysat.data import Dataset
from raysat.errors import InputError
from raysat.models import architectures
from raysat.models.architectures import *  # noqa: F403, its `__all__` names the built-in architectures
from raysat.models.linearized import linearized
from raysat.ntk import NTKStatistics, ntk_statistics
from raysat.results import Results, load
from raysat.spec import Sweep, powers_of_two
from raysat.spec.branches import Branches
from raysat.spec.stepsizes import fixed, fixed_fraction, grid, theory
from raysat.spec.training import Training, asynchronous
from raysat.storage.rows import installed

__version__ = installed() or "unknown"

__all__ = [
    "Branches",
    "Dataset",
    "InputError",
    "NTKStatistics",
    "Results",
    "Sweep",
    "Training",
    "asynchronous",
    "fixed",
    "fixed_fraction",
    "grid",
    "linearized",
    "load",
    "ntk_statistics",
    "powers_of_two",
    "theory",
]
__all__ += architectures.__all__
