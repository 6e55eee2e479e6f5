"""BibTeX is read strictly, and every reference of the package passes."""

import re
from importlib import resources

import pytest

from zoo.citation.bibtex import REQUIRED, decoded, parse
from zoo.citation.lookup import library
from zoo.citation.things import OTHER_NAMES, REFERENCES

ARTICLE = "@article{a, author={A, B}, title={T}, journal={J}, year={2000}"


def test_an_article_as_text_and_as_bibtex():
    text = r"""Free text is a comment, with an at@sign.
    @ARTICLE { key1 ,
      Author = "M{\"u}ller, Karl-Heinz and {The {A} group} and Bea C. D{\'\i}az",
      title = {What   is
               {EM}?}, journal = {J. Stat.}, year = 1999, volume = {2}, number = {3}, pages = {4--5}
    }"""
    [entry] = parse(text, "x.bib")
    assert entry.key == "key1"
    assert entry.text == "K.-H. Müller, The A group and B. C. Díaz (1999). What is EM? J. Stat. 2(3), 4-5."
    assert entry.bibtex.startswith("@article{key1,\n  author = {M{\\")
    assert parse(entry.bibtex, "again") == [entry]


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        (r"S{\"a}ilynoja", "Säilynoja"),
        (r"S{\o}nderby", "Sønderby"),
        (r"\v{S}id\'{a}k", "Šidák"),
        (r"IS\&T", "IS&T"),
        ("``a''", '"a"'),
    ],
)
def test_accents(latex, plain):
    assert decoded(latex) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ARTICLE, "x.bib, a: a closing brace is missing"),
        (ARTICLE + ", 3}", "x.bib, a: expected a field or a closing brace before '3}'"),
        (ARTICLE.replace("{T}", "{T{}"), "field 'title': its braces are not balanced"),
        (ARTICLE.replace("{T}", "") + "}", "field 'title' has no value"),
        (ARTICLE.replace("title={T}, ", "") + "}", "of type article requires the field 'title'"),
        (ARTICLE.replace("{T}", "{}") + "}", "requires the field 'title'"),
        (ARTICLE.replace("{T},", "{T}") + "}", "a comma is missing after the field 'title'"),
        (ARTICLE + ", title={U}}", "the field 'title' comes twice"),
        (ARTICLE + "}\n" + ARTICLE + "}", "the key 'a' comes twice"),
        (ARTICLE + "}\n@article{}", "'@article' begins no entry"),
        ("@misc{b, year={1}}", "of type misc requires the field 'title'"),
    ],
)
def test_damaged_bibtex(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(text, "x.bib")


def test_the_references_of_the_package():
    entries = library()
    text = resources.files("zoo.citation").joinpath("references.bib").read_text(encoding="utf-8")
    assert len(entries) == text.count("\n@") + 1  # and the package itself
    assert text.isascii()
    for key, entry in entries.items():
        kind = entry.bibtex[1 : entry.bibtex.index("{")]
        assert kind in {*REQUIRED, "misc"}, key
        assert "{" not in entry.text, key
        assert "\\" not in entry.text, key
        if key != "latentzoo":  # author, year and the first word that tells
            year = re.search(r"year = \{(\d{4})\}", entry.bibtex)[1]
            surname = decoded(re.search(r"author = \{([^,]+),", entry.bibtex)[1])
            plain = re.sub("[^a-z]", "", surname.lower().replace("ø", "o").replace("á", "a"))
            assert key.startswith(plain + year), key


def test_every_reference_is_used_and_every_name_is_its_own():
    used = {key for things in REFERENCES.values() for keys in things.values() for key in keys}
    assert used == set(library())
    names = [name for things in REFERENCES.values() for name in things] + list(OTHER_NAMES)
    plain = [re.sub(r"[-_ ]", "", name).lower() for name in names]
    assert len(plain) == len(set(plain))
    assert all(keys for things in REFERENCES.values() for keys in things.values())
