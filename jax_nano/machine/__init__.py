"""Facts about instruction sets and processors, each with its source. Needs neither JAX nor MLIR."""
