"""Attention in programs: where it is, and what becomes of its derivatives."""
