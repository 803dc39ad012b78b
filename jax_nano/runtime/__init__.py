"""Object code: made once, kept on disk, described to XLA."""
