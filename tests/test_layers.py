"""Imports point down only, and each dangerous thing has one home: read from the source, without importing it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up. A module imports from its own layer and those below; models and guides, side by side, do not
# know each other, and only the last layer knows both.
LAYERS = [
    {
        "zoo.base",
        "zoo.diagonal",
        "zoo.networks",
        "zoo.likelihoods",
        "zoo.linear_gaussian",
        "zoo.missing",
        "zoo.missing_linear",
        "zoo.missing_mixture",
    },
    {"zoo.models", "guides"},
    {
        "zoo.em",
        "zoo.gauge",
        "zoo.optim",
        "zoo.quadrature",
        "zoo.compiled",
        "zoo.objectives",
        "zoo.run",
        "zoo.checkpoint",
        "zoo.guard",
        "zoo.pairing",
        "zoo.fit",
        "zoo.distributed",
        "zoo.data",
    },
    {
        "zoo.annealing",
        "zoo.bounds",
        "zoo.diagnostics",
        "zoo.gaps",
        "zoo.information",
        "zoo.rowwise",
        "zoo.evaluate",
        "zoo.factors",
        "zoo.export",
        "zoo.plots",
        "zoo.restarts",
    },
    {
        "zoo.registry",
        "zoo.report",
        "zoo.benchmark",
        "zoo.console",
        "zoo.judging",
        "zoo.selecting",
        "zoo.cli",
        "zoo.__main__",
    },
]
GROUND, SIDES, LAST = 0, 1, len(LAYERS) - 1
FILES = sorted([*ROOT.glob("zoo/**/*.py"), *ROOT.glob("guides/**/*.py")])


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for path in FILES}


def unit(name: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    return "guides" if name.split(".")[0] == "guides" else ".".join(name.split(".")[:2])


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if unit(name) in names)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a source imports, wherever the statement stands; ours by their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


SOURCES = [pytest.param(path, id=module(path)) for path in FILES]


@pytest.mark.parametrize("path", [p for p in FILES if module(p) != "zoo"], ids=module)
def test_every_module_has_a_layer(path):
    assert sum(unit(module(path)) in names for names in LAYERS) == 1, "give it a place in LAYERS"


@pytest.mark.parametrize("path", [p for p in FILES if module(p) != "zoo"], ids=module)
def test_imports_point_down(path):
    name = module(path)
    ours = [other for other in imported(parse(path)) if other.split(".")[0] in ("zoo", "guides")]
    if layer(name) != LAST:
        assert "zoo" not in ours, "import from the module itself, not from the public names on top"
    for other in set(ours) - {"zoo"}:
        assert layer(other) <= layer(name), f"{name} imports {other} from a layer above"
        if SIDES in (layer(name), layer(other)) and layer(name) != LAST:
            assert unit(other) == unit(name) or layer(other) == GROUND, f"{name} imports {other}"


@pytest.mark.parametrize("path", SOURCES)
def test_arviz_is_imported_in_one_file_alone(path):
    found = [name for name in imported(parse(path)) if name.split(".")[0].startswith("arviz")]
    assert not found or module(path) == "zoo.export.container"


@pytest.mark.parametrize("path", SOURCES)
def test_svi_is_built_in_fit_alone(path):
    calls = (node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call))
    names = [f.id if isinstance(f, ast.Name) else f.attr for f in calls if isinstance(f, ast.Name | ast.Attribute)]
    assert ("SVI" in names) == (module(path) == "zoo.fit")


@pytest.mark.parametrize("package", ["zoo", "guides", "zoo/models", "zoo/diagnostics", "zoo/export"])
def test_init_holds_the_public_names_and_nothing_else(package):
    docstring, *statements = parse(ROOT / package / "__init__.py").body
    assert isinstance(docstring, ast.Expr)
    imports, names = statements[:-1], statements[-1]
    assert all(isinstance(s, ast.Import | ast.ImportFrom) for s in imports)
    assert isinstance(names, ast.Assign)
    assert ast.unparse(names.targets[0]) == "__all__"
    bound = [alias.asname or alias.name for s in imports for alias in s.names]
    assert sorted(bound) == sorted(ast.literal_eval(names.value))
