"""Whether the rows in a folder belong to the benchmark that is to write there."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.benchmark.suite import Case, Method, Suite


def protocol_text(name: str, protocol: Mapping[str, Any]) -> str:
    """A protocol as JSON, its keys sorted.

    Raises:
        TypeError: it holds something else than plain values.
    """
    try:
        return json.dumps(protocol, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"the protocol of {name!r} must hold plain values that JSON can write: {error}") from None


def head_of(suite: Suite) -> dict[str, Any]:
    """The columns that all rows of a suite have in common."""
    return {
        "suite": suite.name,
        "version": suite.version,
        "measured": measured(suite),
        "budget": suite.budget,
    }


def measured(suite: Suite) -> str:
    """A fingerprint of the names and units of the measures, and of the coordinates along which they are taken."""
    whole = [[m.name, m.unit] for m in suite.measures], list(suite.along)
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:12]


def refuse_others(
    suite: Suite,
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    *,
    again: bool = False,
) -> None:
    """Refuse a folder whose rows were made under another protocol than the suite's.

    Args:
        suite: that is to write there.
        rows: in the folder.
        folder: named in the error.
        again: whether methods whose protocol has changed are run again instead.

    Raises:
        ValueError: what differs, and the way out.
    """
    cases = {case.name: case for case in suite.cases}
    known = {method.name: method for method in suite.methods}
    out = "choose another folder, or remove this one"
    for row in rows:
        if "suite" not in row or "version" not in row:
            raise ValueError(f"{folder} holds rows of another version of latent-zoo, without a protocol: {out}")
        if row["suite"] != suite.name:
            raise ValueError(
                f"{folder} holds the benchmark {row['suite']!r}, not {suite.name!r}: choose another folder"
            )
        if row["budget"] != suite.budget:
            raise ValueError(
                f"{folder} holds the budget {row['budget']!r}, not {suite.budget!r}: "
                f"choose another folder, or budget={row['budget']!r}"
            )
        if (row["version"], row["measured"]) != (suite.version, measured(suite)):
            raise ValueError(
                f"{folder} holds version {row['version']} of the benchmark {suite.name!r} (latent-zoo "
                f"{row['latent_zoo']}), and this is version {suite.version}, with other measures or another protocol: "
                f"{out}"
            )
        _refuse_other(cases.get(row["case"]), row["case_protocol"], "case", f"{folder}: {{}}: {out}")
        if not again:
            way = "run the method again by again=True, or choose another folder"
            _refuse_other(known.get(row["method"]), row["method_protocol"], "method", f"{folder}: {{}}: {way}")


def _refuse_other(one: Case | Method | None, written: str, kind: str, message: str) -> None:
    """Refuse a case or method whose protocol is not the one that was written."""
    if one is None or protocol_text(one.name, one.protocol) == written:
        return
    there, here = json.loads(written), json.loads(protocol_text(one.name, one.protocol))
    changed = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    named = "; ".join(f"{key}: {there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here" for key in changed)
    raise ValueError(message.format(f"the {kind} {one.name!r} was run under another protocol ({named})"))
