"""Small kernels that measure a processor: for `python -m jax_nano calibrate`, and for the roofs of benchmarks."""
