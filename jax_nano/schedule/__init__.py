"""From a product to a plan: the candidates, what they cost, and the choice. Needs neither JAX nor MLIR."""
