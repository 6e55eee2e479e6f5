"""The table of a benchmark in Markdown."""

from collections.abc import Iterator

from zoo.benchmark.layout import Block, Layout, Text


def markdown(layout: Layout) -> str:
    """Tables, how to read them, and the sources of published values."""
    lines = [line for block in layout.blocks for line in _block(block)]
    lines.append(" ".join(layout.notes))
    lines += [f"({letter}) {published.source}" for letter, published in layout.sources.items()]
    return "\n\n".join("\n".join(part) for part in _paragraphs(lines)) + "\n"


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Rows of a table stay together; everything else is a paragraph of its own."""
    table: list[str] = []
    for line in lines:
        if line.startswith("|"):
            table.append(line)
            continue
        if table:
            yield table
        table = []
        if line:
            yield [line]
    if table:
        yield table


def _block(block: Block) -> Iterator[str]:
    """A title and the lines of a table."""
    if block.title:
        yield f"**{escaped(block.title)}**"
    yield ""
    yield "| | " + " | ".join(map(escaped, block.head)) + " |"
    yield "|---" + "|---:" * len(block.head) + "|"
    for group, rows in block.groups:
        if group:
            yield f"| **{escaped(group)}** |" + " |" * len(block.head)
        for name, cells in rows:
            yield f"| {escaped(name)} | " + " | ".join(map(_cell, cells)) + " |"


def _cell(cell: Text) -> str:
    """A number with its error, or what became of it."""
    value = f"**{cell.mean}**" if cell.best else cell.mean
    value += f" ± {cell.se}" * bool(cell.se)
    note = f"({cell.note})" if value and cell.note else cell.note
    known = "" if cell.published is None else f"[{cell.published[0]} ({cell.published[1]})]"
    return " ".join(filter(None, [value, note, known]))


def escaped(text: str) -> str:
    """Text without a meaning in Markdown tables.

    >>> escaped("a|b_c*")
    'a\\\\|b\\\\_c\\\\*'
    """
    for sign in "\\|_*<":
        text = text.replace(sign, "\\" + sign)
    return text
