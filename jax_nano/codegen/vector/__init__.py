"""Elementwise work on vectors: conversions, elementary functions, programs."""
