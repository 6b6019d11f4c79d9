"""Code shared by statistics and SGD steps: matrix products and memory planning."""
