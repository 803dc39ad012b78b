"""Grouped products in programs, and the rows that are gathered and scattered around them."""
