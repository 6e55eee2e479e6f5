"""BibTeX, read strictly, and references as a line of text."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

REQUIRED = {  # by the type of the entry; other types need a title
    "article": ("author", "title", "journal", "year"),
    "book": ("author", "title", "publisher", "year"),
    "incollection": ("author", "title", "booktitle", "publisher", "year"),
    "inproceedings": ("author", "title", "booktitle", "year"),
    "mastersthesis": ("author", "title", "school", "year"),
    "phdthesis": ("author", "title", "school", "year"),
    "techreport": ("author", "title", "institution", "year"),
}
VENUES = ("journal", "booktitle", "publisher", "school", "institution", "howpublished")
ALL_AUTHORS = 6  # of more only the first is named in a line of text
ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "v": "\u030c", "c": "\u0327"}
LETTERS = {"o": "ø", "O": "Ø", "aa": "å", "AA": "Å", "ae": "æ", "AE": "Æ", "ss": "ß", "l": "ł", "L": "Ł"}

_ENTRY = re.compile(r"^[ \t]*@(\w+)\s*\{\s*([^\s,{}\"]+)\s*,", re.MULTILINE)
_FIELD = re.compile(r"\s*([A-Za-z][\w-]*)\s*=\s*")
_ACCENT = re.compile(r"\\(['`^\"~]|[vc](?=[\s{]))\s*\{?\s*\\?([A-Za-z])\}?")
_LETTER = re.compile(r"\\(aa|AA|ae|AE|ss|o|O|l|L)(?![A-Za-z])\s*")


@dataclass(frozen=True)
class Entry:
    """A reference, or something that has none.

    Attributes:
        key: of the BibTeX entry; for something without a reference its name.
        bibtex: the entry; empty without a reference.
        text: the same as one line of plain text.
        of: the names of the things that it was asked for, such as ``("PPCA", "BayesianPCA")``.
    """

    key: str
    bibtex: str
    text: str
    of: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def parse(text: str, origin: str) -> list[Entry]:
    """The entries of a BibTeX file; what stands between them is a comment.

    Strings (``@string``) and concatenation (``#``) are not supported.

    Args:
        text: the content of the file.
        origin: its name, for messages.

    Raises:
        ValueError: an entry is not closed, a field has no value or comes twice, a key comes twice, or an entry lacks a
            field that its type requires.

    >>> [entry] = parse("@book{efron1993, author={Efron, Bradley}, title={Title}, publisher={CRC}, year=1993}", "a.bib")
    >>> entry.text
    'B. Efron (1993). Title. CRC.'
    >>> print(entry.bibtex)
    @book{efron1993,
      author = {Efron, Bradley},
      title = {Title},
      publisher = {CRC},
      year = {1993},
    }
    """
    found: dict[str, Entry] = {}
    place = 0
    while start := _ENTRY.search(text, place):
        kind, key = start[1].lower(), start[2]
        fields, place = _fields(text, start.end(), f"{origin}, {key}")
        if key in found:
            raise ValueError(f"{origin}: the key {key!r} comes twice: rename one of the entries")
        if lacking := [name for name in REQUIRED.get(kind, ("title",)) if not fields.get(name)]:
            raise ValueError(f"{origin}, {key}: an entry of type {kind} requires the field {lacking[0]!r}")
        found[key] = Entry(key, _bibtex(kind, key, fields), _text(fields))
    if stray := re.search(r"^[ \t]*@\w*", text[place:], re.MULTILINE):
        raise ValueError(f"{origin}: {stray[0].strip()!r} begins no entry: write @type{{key, field = {{value}}, ...}}")
    return list(found.values())


def _fields(text: str, place: int, where: str) -> tuple[dict[str, str], int]:
    """The fields of an entry from ``place`` on, and the place after its closing brace."""
    fields: dict[str, str] = {}
    while True:
        end = re.compile(r"\s*\}").match(text, place)
        if end:
            return fields, end.end()
        name = _FIELD.match(text, place)
        if not text[place:].strip():
            raise ValueError(f"{where}: a closing brace is missing")
        if name is None:
            excerpt = " ".join(text[place : place + 30].split())
            raise ValueError(f"{where}: expected a field or a closing brace before {excerpt!r}")
        label = name[1].lower()
        if label in fields:
            raise ValueError(f"{where}: the field {label!r} comes twice")
        fields[label], place = _value(text, name.end(), f"{where}, field {label!r}")
        comma = re.compile(r"\s*(,|(?=\})|$)").match(text, place)
        if comma is None:
            raise ValueError(f"{where}: a comma is missing after the field {label!r}")
        place = comma.end()


def _value(text: str, place: int, where: str) -> tuple[str, int]:
    """A value in braces or quotes, or a number, and the place after it; white space becomes single spaces."""
    if number := re.compile(r"\d+").match(text, place):
        return number[0], number.end()
    opening = text[place : place + 1]
    if opening not in ("{", '"'):
        raise ValueError(f"{where} has no value: write it in braces")
    depth = 0
    for i in range(place + (opening == '"'), len(text)):
        char = text[i]
        if char in "{}" and text[i - 1] != "\\":
            depth += 1 if char == "{" else -1
        if depth == 0 and char == ("}" if opening == "{" else '"'):
            return " ".join(text[place + 1 : i].split()), i + 1
        if depth < 0:
            break
    raise ValueError(f"{where}: its braces are not balanced")


def _bibtex(kind: str, key: str, fields: Mapping[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _text(fields: Mapping[str, str]) -> str:
    """Authors, year, title and venue."""
    plain = {name: decoded(value) for name, value in fields.items() if name != "author"}
    year = f" ({plain['year']})" if plain.get("year") else ""
    parts = [f"{_authors(fields['author'])}{year}"] if fields.get("author") else []
    title = plain["title"] + ("" if parts else year)
    parts.append(title)
    venue = next((plain[name] for name in VENUES if plain.get(name)), "")
    if not venue and plain.get("eprint"):
        venue = f"{plain.get('archiveprefix', '')} {plain['eprint']}".strip()
    if "journal" in plain:
        venue += f" {plain['volume']}" if plain.get("volume") else ""
        venue += f"({plain['number']})" if plain.get("volume") and plain.get("number") else ""
    pages = plain.get("pages", "").replace("--", "-")
    venue += f", {pages}" if venue and pages else ""
    return " ".join(part if part[-1] in ".?!" else f"{part}." for part in (*parts, venue) if part)


def _authors(field: str) -> str:
    """Names with initials: ``A. Meier, B. Müller and C. Schmidt``."""
    names = list(map(_author, _separated(field)))
    if "others" in names or len(names) > ALL_AUTHORS:
        return f"{names[0]} et al."
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _separated(field: str) -> list[str]:
    """The single names of a field, divided by ``and`` outside braces."""
    names: list[list[str]] = [[]]
    depth = 0
    for word in field.split(" "):
        if word == "and" and depth == 0:
            names.append([])
        else:
            names[-1].append(word)
        depth += word.count("{") - word.count("}")
    return [" ".join(name) for name in names]


def _author(name: str) -> str:
    """``Last, First Middle`` or ``First Middle Last`` with initials; a name in braces as it is."""
    if name.startswith("{") and name.endswith("}"):
        return decoded(name)
    last, comma, first = decoded(name).partition(", ")
    if not comma:
        *given, last = decoded(name).split(" ")
        first = " ".join(given)
    initials = ["-".join(f"{half[0]}." for half in part.split("-") if half) for part in first.split()]
    return " ".join([*initials, last])


def decoded(value: str) -> str:
    r"""LaTeX as plain text: accents, letters and the usual escapes.

    >>> decoded(r"H{\aa}vard Rue, C{\'e}dric, {EM} and \& 1--2")
    'Håvard Rue, Cédric, EM and & 1--2'
    """
    value = _ACCENT.sub(lambda found: unicodedata.normalize("NFC", found[2] + ACCENTS[found[1]]), value)
    value = _LETTER.sub(lambda found: LETTERS[found[1]], value)
    value = re.sub(r"\\([&%$#_{}])", r"\1", value).replace("~", " ")
    value = value.replace("``", '"').replace("''", '"')
    return re.sub(r"(?<!\\)[{}]", "", value)


def entries_of(text: str, origin: str) -> list[Entry]:
    """The entries of a text that must have one.

    Raises:
        ValueError: it has none, or as for :func:`parse`.
    """
    found = parse(text, origin)
    if not found:
        raise ValueError(f"{origin} holds no BibTeX entry: write @article{{key, author = {{...}}, ...}}")
    return found
