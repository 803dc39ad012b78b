"""Products of groups of rows whose sizes are known at run time only."""
