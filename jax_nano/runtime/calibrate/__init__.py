"""Measures what the cost model wants to know of this very machine: `python -m jax_nano calibrate`."""
