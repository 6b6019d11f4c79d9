"""The driver of a sweep: from its file to cells, from cells to jobs, and from their results to further cells."""
