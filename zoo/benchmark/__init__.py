"""Benchmarks: models x guides x data x seeds -> a table."""
