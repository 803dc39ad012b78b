"""Plans of gated products."""
