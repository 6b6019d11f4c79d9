"""What statistics and SGD steps share: matrix products, and memory planning."""
