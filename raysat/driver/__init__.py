"""What drives a sweep: from its file to cells, from cells to jobs, and from their results to more of them."""
