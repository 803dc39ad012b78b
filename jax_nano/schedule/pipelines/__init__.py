"""Plans of pipelines."""
