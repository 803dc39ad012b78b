"""What to compute: frozen descriptions of products. Needs neither JAX nor MLIR."""
