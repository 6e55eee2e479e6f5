"""How a CSV file is written: its encoding, its separator, and whether its first column names the rows."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WINDOWS = "cp1252"  # what is not UTF-8 is read as this superset of the printable characters of latin-1
HEAD = 2**16  # characters from which the separator is found
UNNAMED = ("", "Unnamed: 0")  # as R and pandas write the names of the rows


@dataclass(frozen=True)
class Format:
    """How a CSV file is written; None for what its content tells.

    Attributes:
        separator: between two fields, a single character.
        decimal: the decimal mark, ``"."`` or ``","``.
        encoding: the name of a Python codec.
    """

    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and len(self.separator) != 1:
            raise ValueError(f"separator must be a single character, got {self.separator!r}")
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"decimal must be '.' or ',', got {self.decimal!r}")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(f"encoding={self.encoding!r} is unknown: see Python's list of codecs") from None


def find_encoding(path: Path) -> str:
    """The encoding of a text file: that of its byte order mark, else UTF-8, else Windows-1252.

    Raises:
        ValueError: the file is binary.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as stream:
        first = stream.read(4)
        for mark, name in MARKS.items():
            if first.startswith(mark):
                return name
        stream.seek(0)
        name = "utf-8"
        while block := stream.read(2**20):
            if b"\0" in block:
                raise ValueError(
                    f"{path} cannot be read: it is no text in UTF-8, as it contains zero bytes. If it is compressed or "
                    "a spreadsheet, save it as CSV; if it is in another encoding, pass encoding="
                )
            if name == "utf-8":
                try:
                    decoder.decode(block)
                except UnicodeDecodeError:
                    name = WINDOWS
    return name


def find_separator(path: Path, encoding: str) -> str:
    """The separator of a CSV file: the one by which the header has several fields and the first lines as many.

    Raises:
        ValueError: that holds for several.
    """
    with path.open(encoding=encoding, newline="") as stream:
        head = stream.read(HEAD)
    if len(head) == HEAD:
        head = head[: head.rfind("\n") + 1]
    widths = {separator: _widths(head, separator) for separator in SEPARATORS}
    likely = [separator for separator, found in widths.items() if found and found[0] > 1]
    if len(likely) < 2:
        return likely[0] if likely else ","
    even = [separator for separator in likely if set(widths[separator][1:]) <= {widths[separator][0]}]
    if len(even) > 1:
        names = " and ".join(SEPARATORS[separator] for separator in even)
        raise ValueError(f"{path}: both {names} separate its lines into equally many fields: pass separator=")
    return even[0] if even else likely[0]


def _widths(head: str, separator: str) -> list[int]:
    """The number of fields of the first lines; empty if they cannot be separated in this way."""
    try:
        return [
            len(line) for line in csv.reader(io.StringIO(head, newline=""), strict=True, delimiter=separator) if line
        ]
    except csv.Error:
        return []


class FirstColumn:
    """The entries of a first column as long as they may be the names of the rows: unique, and text unless unnamed."""

    def __init__(self, title: str) -> None:
        self.unnamed = title in UNNAMED
        self.names: dict[str, None] | None = {}

    def add(self, entry: str) -> None:
        """The next entry."""
        if self.names is None:
            return
        entry = entry.strip()
        if not entry or entry in self.names or not (self.unnamed or not is_number(entry)):
            self.names = None
        else:
            self.names[entry] = None

    @property
    def found(self) -> list[str] | None:
        """The names of the rows; None if this is no column of names."""
        names = None if self.names is None else list(self.names)
        return names if names and (len(names) > 1 or self.unnamed) else None

    @property
    def counts(self) -> bool:
        """Whether they count from 0 or 1."""
        names = self.found or []
        return names in ([str(i) for i in range(len(names))], [str(i + 1) for i in range(len(names))])


def is_number(text: str) -> bool:
    """Whether text is a number, a Boolean or the mark of a missing one."""
    if text.lower() in ("true", "false"):
        return True
    try:
        float(text.replace(",", "."))
    except ValueError:
        return text in MISSING_NUMBERS
    return True


LABELS_MISSING = ("", "NA", "N/A", "null", "NULL")
MISSING_NUMBERS = (
    *LABELS_MISSING,
    *("na", "n/a", "Null", "None", "none", "NaT", "<NA>", "#N/A", "#NA", "#N/A N/A", "#NULL!", "-NaN", "-nan"),
    *("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "?", "-", "--", "."),
)
COMMA = r"^[+-]?\d*,\d+(?:[eE][+-]?\d+)?$"
POINT = r"^[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?$"
THOUSANDS = r"^[+-]?[1-9]\d{0,2}(?:,\d{3})+$"


def find_decimal(columns: Sequence[pl.Series], origin: str) -> str:
    """The decimal mark of columns of text: a comma where numbers have one, and none has a point.

    Raises:
        ValueError: there are numbers of both kinds, or commas that may as well separate thousands.
    """
    first = next(_matches(columns, ",", COMMA), None)
    if first is None:
        return "."
    column, number = first
    other = next(_matches(columns, ".", POINT), None)
    if other is not None:
        raise ValueError(
            f"{origin} has numbers with a decimal comma (column {column!r}: {number!r}) and with a point (column "
            f"{other[0]!r}: {other[1]!r}): pass decimal=, and exclude the columns of the other kind"
        )
    with_comma = [text.filter(text.str.contains(COMMA)) for text in columns]
    if all(text.str.contains(THOUSANDS).all() for text in with_comma):
        raise ValueError(
            f"{origin}: {number!r} in column {column!r} may have a decimal comma or a comma between thousands: pass "
            "decimal=',', or write the numbers without commas"
        )
    return ","


def _matches(columns: Sequence[pl.Series], mark: str, pattern: str) -> Iterator[tuple[str, str]]:
    """The first entry of every column that matches, with the column's name; looks closer only where the mark occurs."""
    for text in columns:
        if text.str.contains(mark, literal=True).any():
            found = text.filter(text.str.contains(pattern))
            if len(found):
                yield text.name, found[0]
