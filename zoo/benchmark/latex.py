r"""The table of a benchmark in LaTeX, for ``\input`` in a paper that loads ``booktabs`` and ``graphicx``."""

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

from zoo.benchmark.layout import Block, Layout, Text
from zoo.citation import Entry

ROWS = 45  # that fit a page
HEAD = 15  # letters in a line of the head of a column
SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "…": r"\dots{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "²": "$^2$",
}
GREEK = "GREEK SMALL LETTER "
PREAMBLE = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs,graphicx}"
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # as wide as the text, at most


def latex(layout: Layout, name: str, question: str, references: Sequence[Entry] = ()) -> str:
    r"""Tables with captions and labels ``tab:NAME``, ``tab:NAME-2`` and so on; the last has the notes.

    Args:
        layout: of the tables.
        name: of the benchmark.
        question: that its table answers, for the caption.
        references: what to cite, whose keys a comment names.
    """
    parts = [part for block in layout.blocks for part in _pages(block)]
    lines = [rf"% Written by: zoo benchmark {name}. Needs \usepackage{{booktabs,graphicx}}."]
    if keys := [entry.key for entry in references if entry.bibtex]:
        lines.append(rf"% To cite, with cite.bib: \cite{{{','.join(keys)}}}")
    for number, part in enumerate(parts, 1):
        label = f"tab:{name}" + (f"-{number}" if number > 1 else "")
        caption = f"{question} {part.title}".strip() if number == 1 else part.title or f"{question} (continued)"
        notes = list(_notes(layout)) if number == len(parts) else []
        lines += _table(part, escaped(caption), label, notes)
    return "\n".join([*lines, ""])


def document(table: str) -> str:
    r"""A document that holds nothing but the text of ``table.tex``."""
    return "\n".join([PREAMBLE, r"\begin{document}", table, r"\end{document}", ""])


def _pages(block: Block) -> Iterator[Block]:
    """A table in parts that fit a page, with whole groups where there are several."""
    pieces = [(name, rows[i : i + ROWS]) for name, rows in block.groups for i in range(0, len(rows), ROWS)]
    sizes = [0]
    for _, rows in pieces:
        sizes.append(sizes[-1] + len(rows) + 1)
    cuts = [0]
    for number in range(1, len(pieces)):
        if sizes[number + 1] - sizes[cuts[-1]] > ROWS:
            cuts.append(number)
    for first, last in pairwise([*cuts, len(pieces)]):
        yield Block(block.title, block.head, tuple(pieces[first:last]))


def _table(block: Block, caption: str, label: str, notes: list[str]) -> Iterator[str]:
    """The lines of a table."""
    yield from (r"\begin{table}", r"\centering\small", rf"\caption{{{caption}}}", rf"\label{{{label}}}", r"\smallskip")
    yield FITTED
    yield rf"\begin{{tabular}}{{l{'r' * len(block.head)}}}"
    yield r"\toprule"
    yield " & ".join(["", *map(_head, block.head)]) + r" \\"
    for group, rows in block.groups:
        yield r"\midrule"
        if group:
            yield rf"\multicolumn{{{len(block.head) + 1}}}{{l}}{{\emph{{{escaped(group)}}}}} \\"
        for name, cells in rows:
            yield " & ".join([escaped(name), *map(_cell, cells)]) + r" \\"
    yield from (r"\bottomrule", r"\end{tabular}}")
    if notes:
        yield r"\par\smallskip\footnotesize\raggedright"
        yield from notes
    yield r"\end{table}"


def _notes(layout: Layout) -> Iterator[str]:
    """How to read the tables, and the sources."""
    yield escaped(" ".join(layout.notes))
    for letter, published in layout.sources.items():
        yield rf"\textsuperscript{{{letter}}}~{escaped(published.source)}."


def _head(text: str) -> str:
    """The head of a column, in lines of a few words."""
    parts = text.replace(" (", "\n(").split("\n")
    lines = [escaped(line) for part in parts for line in textwrap.wrap(part, HEAD, break_long_words=False)]
    stack = r"\\".join(lines)
    return rf"\shortstack[r]{{{stack}}}" if len(lines) > 1 else stack


def _cell(cell: Text) -> str:
    """A number with its error, or what became of it."""
    bold = r"\mathbf{{{}}}" if cell.best else "{}"
    value = " ".join(filter(None, [_number(cell.mean, bold), _number(cell.se, r"\pm {}")]))
    note = escaped(f"({cell.note})" if value and cell.note else cell.note)
    known = "" if cell.published is None else rf"[{_number(cell.published[0])}\textsuperscript{{{cell.published[1]}}}]"
    return " ".join(filter(None, [value, note, known]))


def _number(text: str, form: str = "{}") -> str:
    r"""A number in mathematics.

    >>> print(_number("-1.20"), _number("3.0e-05", r"\pm {}"))
    $-1.20$ $\pm 3.0\mathrm{e}{-05}$
    """
    shown = text.replace("inf", r"\infty")
    if "e" in text:
        digits, power = text.split("e")
        shown = rf"{digits}\mathrm{{e}}{{{power}}}"
    return f"${form.format(shown)}$" if text else ""


def escaped(text: str) -> str:
    r"""Text in which no sign has a meaning to LaTeX.

    >>> print(escaped("my_guide & 5% of x^2"))
    my\_guide \& 5\% of x\textasciicircum{}2
    """
    return "".join(SIGNS.get(sign) or _greek(sign) for sign in text)


def _greek(sign: str) -> str:
    """A Greek letter as its command, any other sign as it is."""
    name = unicodedata.name(sign, "")
    return (
        rf"$\{name.removeprefix(GREEK).lower()}$" if name.startswith(GREEK) and " " not in name[len(GREEK) :] else sign
    )
