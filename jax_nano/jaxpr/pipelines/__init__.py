"""Loops and small programs as stages of one kernel."""
