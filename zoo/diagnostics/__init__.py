"""Whether a fit can be believed: its q beside the posterior, its p beside the data."""

from zoo.diagnostics.importance import Importance, PosteriorError, importance, posterior_error

__all__ = ["Importance", "PosteriorError", "importance", "posterior_error"]
