"""From a plan to an MLIR module."""
