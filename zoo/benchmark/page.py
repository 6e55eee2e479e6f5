"""The page of a benchmark: protocol, tables, claims, failures, and how it was run."""

import json
from collections.abc import Iterator, Sequence

import polars as pl

from zoo.benchmark.citing import listed
from zoo.benchmark.layout import Layout
from zoo.benchmark.markdown import escaped, markdown
from zoo.benchmark.suite import Claim, Suite
from zoo.citation import Entry

WORDS = {True: "held", False: "not held", None: "not decided"}
WHERE = ("processor", "cores", "system", "device", "threads")
VERSIONS = {
    "latent_zoo": "latent-zoo",
    "python": "Python",
    "torch": "torch",
    "pyro": "Pyro",
    "numpy": "numpy",
    "scikit_learn": "scikit-learn",
}


def page(
    suite: Suite,
    table: pl.DataFrame,
    layout: Layout,
    claims: Sequence[Claim],
    references: list[Entry],
    picture: str | None,
) -> str:
    """The page in Markdown.

    Args:
        suite: that was run.
        table: of all its rows.
        layout: of its tables.
        claims: as checked on the table.
        references: what to cite.
        picture: the path of the figure, as the page shall name it.
    """
    parts = [
        f"# {suite.name}",
        suite.question,
        suite.text.strip(),
        "\n".join(_commands(suite, table)),
        f"## Results, budget `{suite.budget}`",
        markdown(layout).strip(),
        f"![{suite.question}]({picture})" if picture else "",
        *(["## Claims", said(claims)] if claims else []),
        "## What is measured",
        "\n".join(_measures(suite)),
        *_problems(table),
        "## How it was run",
        "\n".join(_surroundings(table)),
        "## Protocols",
        "\n".join(_protocols(suite, table)),
        "## What to cite",
        listed(references),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def said(claims: Sequence[Claim]) -> str:
    """The claims as a list, each with its figures.

    >>> print(said([Claim("more latents are better", True, "-90.1 < -88.0")]))
    - **held**: more latents are better (-90.1 < -88.0)
    """
    return "\n".join(f"- **{WORDS[one.held]}**: {one.text}" + f" ({one.figures})" * bool(one.figures) for one in claims)


def _commands(suite: Suite, table: pl.DataFrame) -> Iterator[str]:
    """What makes this table: a command, or one for each of the user's own methods."""
    seeds = table["seed"].n_unique()
    more = f" --seeds {seeds}" if seeds != suite.seeds else ""
    for options in [own.options for own in suite.added] or [""]:
        yield f"    zoo benchmark {suite.name} --budget {suite.budget}{more}{options} --out runs/{suite.name}"


def _measures(suite: Suite) -> Iterator[str]:
    """What the columns are."""
    for measure in suite.measures:
        way = f", {measure.better} is better" if measure.better else ""
        unit = f" ({measure.unit}{way})" if measure.unit else f" ({way[2:]})" if way else ""
        yield f"- `{measure.name}`{unit}" + f": {measure.text}" * bool(measure.text)
    yield "- `seconds`: of the training, on the wall; `rows.jsonl` also has processor seconds and memory"


def _problems(table: pl.DataFrame) -> Iterator[str]:
    """Cells that failed or were refused, and warnings, each once with the number of its cells."""
    gone = table.filter(pl.col("status") != "done")
    if not gone.is_empty():
        yield "## Cells without a result"
        kinds = ("case", "method", "status", "failure", "message", "place")
        each = gone.group_by(*kinds, maintain_order=True).agg(pl.col("seed"))
        yield "\n".join(_problem(row) for row in each.iter_rows(named=True))
    said_ = table.filter(pl.col("warnings") != "").select("method", "warnings").unique(maintain_order=True)
    texts: dict[str, list[str]] = {}
    for method, warnings in said_.iter_rows():
        for text in warnings.split("\n"):
            texts.setdefault(text, [])
            texts[text] += [method] if method not in texts[text] else []
    if texts:
        yield "## Warnings"
        yield "\n".join(f"- {escaped(text)} ({', '.join(methods)})" for text, methods in texts.items())


def _problem(row: dict) -> str:
    seeds = ", ".join(map(str, row["seed"]))
    where = f"; {row['place']}" if row["place"] and row["status"] == "failed" else ""
    text = f"{row['case']}, {row['method']}, seed {seeds}: {row['status']}: {row['failure']}: {row['message']}{where}"
    return f"- {escaped(' '.join(text.split()))}"


def _surroundings(table: pl.DataFrame) -> Iterator[str]:
    """Machines and versions, each once; how long it took, and when."""
    for place in table.select(*WHERE).unique(maintain_order=True).iter_rows(named=True):
        threads = f"{place['threads']} thread{'s' * (place['threads'] != 1)} a cell"
        yield f"- {place['processor']}, {place['cores']} cores, {place['system']}; on {place['device']}; {threads}"
    for found in table.select(*VERSIONS).unique(maintain_order=True).iter_rows(named=True):
        yield "- " + ", ".join(f"{VERSIONS[name]} {version}" for name, version in found.items())
    cells = table.unique(["case", "method", "seed"], maintain_order=True)
    seconds = cells["total_seconds"].fill_nan(0.0).sum()
    taken = f"{seconds:.0f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"
    first, last = str(cells["date"].min()), str(cells["date"].max())
    yield f"- {len(cells)} cells, {taken} in all, from {first} to {last}"


def _protocols(suite: Suite, table: pl.DataFrame) -> Iterator[str]:
    """The protocols of cases and methods, and which methods are from elsewhere."""
    rivals = {method.name for method in suite.methods if method.baseline}
    for kind in ("case", "method"):
        for name, protocol in table.select(kind, f"{kind}_protocol").unique(maintain_order=True).iter_rows():
            settings = json.loads(protocol)
            listed = "; ".join(f"{key} {json.dumps(value)}" for key, value in settings.items()) or "nothing to set"
            rival = " (a baseline)" if kind == "method" and name in rivals else ""
            yield f"- {kind} **{escaped(name)}**{rival}: {escaped(listed)}"
