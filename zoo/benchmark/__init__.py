"""Benchmarks: models x guides x data x seeds, and speed, as tables; an interrupted benchmark resumes."""
