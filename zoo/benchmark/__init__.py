"""Benchmarks of models x guides x data x seeds, as a table; an interrupted benchmark resumes."""
