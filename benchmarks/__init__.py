"""Times matrix products: `python -m benchmarks`."""
