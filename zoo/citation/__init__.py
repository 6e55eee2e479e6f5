"""Whose work is this: the references of models, guides, losses, algorithms and data sets, as BibTeX and as text.

:func:`citations` takes names and objects, such as a run. Names need no torch.
"""

from zoo.citation.bibtex import Entry
from zoo.citation.citing import as_bibtex, citations
from zoo.citation.lookup import citable

__all__ = [
    "Entry",
    "as_bibtex",
    "citable",
    "citations",
]
