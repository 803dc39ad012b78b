"""Weights in other forms than arrays: packed, or quantized."""
