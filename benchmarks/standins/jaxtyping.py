"""Stands in for jaxtyping where it is not installed: `Float[Tensor, "n d"]` is then a tensor, of unchecked shape.

`benchmarks/gpu.sh` puts this folder on the path only where `import jaxtyping` fails.
"""

from typing import Annotated

Bool = Float = Float32 = Float64 = Int = Int32 = Int64 = Real = Shaped = UInt8 = Annotated
