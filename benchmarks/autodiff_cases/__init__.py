"""What `autodiff.py` differentiates: PyTorch's functions, modules, and what users write themselves."""

from autodiff_cases import algebra, images, modules, own, pointwise, shapes
from autodiff_cases.case import Case

CASES = [
    *pointwise.ACTIVATIONS,
    *pointwise.POINTWISE,
    *shapes.REDUCTIONS,
    *shapes.INDEXING,
    *algebra.PRODUCTS,
    *algebra.ATTENTION,
    *algebra.LINALG,
    *algebra.SPECTRAL,
    *images.IMAGES,
    *modules.VECTORS,
    *modules.SEQUENCES,
    *modules.PICTURES,
    *modules.TOKENS,
    *modules.OF_WEIGHTS,
    *own.FUNCTIONS,
    *own.HELD,
    *own.DERIVATIVES,
]

__all__ = ["CASES", "Case"]
