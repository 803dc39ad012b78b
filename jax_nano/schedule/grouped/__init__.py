"""Plans of grouped products."""
