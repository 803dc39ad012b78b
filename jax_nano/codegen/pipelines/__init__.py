"""Several stages in a row as one kernel: products, elementwise work, reductions, loops."""
