"""The layers of the package, read from its folders: what may import what, without importing anything.

``python tests/test_layers.py`` prints the figures.
"""

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = 8  # the longest chain of units, each importing the next
LONG = 60  # lines of a function, its docstring not counted
ANY_LIMIT = 20  # parameters and attributes named as in ANY with type Any
PUBLIC = 30  # names on top
ANY = {"model", "guide", "run", "loss", "x", "q"}
SPLIT = {"infer", "diagnostics"}  # wings whose sub-folders are units of their own
TOP = {"commands", "benchmark"}  # wings that may import the public names on top
FILES = sorted([*ROOT.glob("zoo/**/*.py"), *ROOT.glob("guides/**/*.py")])


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}
INNER = sorted(MODULES.keys() - {"zoo", "zoo.__main__"})


def unit(name: str) -> str:
    """``guides``, the wing of a module, or its sub-folder."""
    parts = name.split(".")
    if parts[0] == "guides":
        return "guides"
    deep = len(parts) > 2 and parts[1] in SPLIT and (ROOT.joinpath(*parts[:3]) / "__init__.py").exists()
    return ".".join(parts[: 3 if deep else 2])


@functools.cache
def parse(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def running(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below ``node``, without those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from running(child)


@functools.cache
def imported(name: str) -> frozenset[str]:
    """Every module that a module imports, wherever the statement stands; ours by their full names."""
    found = set()
    for node in running(parse(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: relative import"
            assert node.module is not None
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {other if other in MODULES else node.module for other in full.values()}
    return frozenset(found)


def ours(name: str) -> set[str]:
    return {other for other in imported(name) if other in MODULES} - {name}


def modules_of(one: str) -> dict[str, set[str]]:
    """The modules of a unit, each with those of the unit that it imports."""
    names = {name for name in INNER if unit(name) == one}
    return {name: ours(name) & names for name in names}


def units() -> dict[str, set[str]]:
    """Every unit with the units it imports."""
    graph: dict[str, set[str]] = {unit(name): set() for name in INNER}
    for name in INNER:
        graph[unit(name)] |= {unit(other) for other in ours(name) - {"zoo"}} - {unit(name)}
    return graph


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A closed path through the graph, or an empty list."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph[node]):
            if found := walk(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def chain(graph: Mapping[str, set[str]]) -> list[str]:
    """The longest path through a graph without circles."""

    @functools.cache
    def longest(node: str) -> list[str]:
        return [node, *max((longest(other) for other in graph[node]), key=len, default=[])]

    return max((longest(node) for node in sorted(graph)), key=len)


def names_in(name: str) -> set[str]:
    """The functions, classes and imported names of a module; of a package, the names beside its modules."""
    found = set()
    for node in parse(name).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name for a in node.names if f"{node.module}.{a.name}" not in MODULES}
    return found


def shadowed() -> list[str]:
    """Modules whose name a function or class takes in the package that holds them; among plots, their own too."""
    found = []
    for name in INNER:
        package, _, last = name.rpartition(".")
        own = {n.name for n in parse(name).body if isinstance(n, ast.FunctionDef)} if package == "zoo.plots" else set()
        if last in own or (package and last in names_in(package)):
            found.append(name)
    return found


def loose() -> list[str]:
    return [p.name for p in sorted((ROOT / "zoo").glob("*.py")) if p.stem not in ("__init__", "__main__")]


def long_functions() -> list[str]:
    return [
        f"{name}.{node.name}"
        for name in MODULES
        for node in ast.walk(parse(name))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 - documented(node) > LONG
    ]


def documented(node: ast.FunctionDef) -> int:
    """The lines of a function's docstring."""
    first = node.body[0]
    return (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0


def untyped() -> list[str]:
    """Parameters and attributes named in ANY whose type is Any."""
    found = []
    for name in MODULES:
        for node in ast.walk(parse(name)):
            if isinstance(node, ast.arg):
                label, kind = node.arg, node.annotation
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                label, kind = node.target.id, node.annotation
            else:
                continue
            if label in ANY and kind is not None and ast.unparse(kind) in ("Any", "Any | None"):
                found.append(f"{name}:{node.lineno} {label}")
    return found


def public() -> list[str]:
    statement = next(
        s for s in parse("zoo").body if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "__all__"
    )
    return list(ast.literal_eval(statement.value))


def figures() -> dict[str, object]:
    graph = units()
    circles = [found for one in sorted(graph) if (found := circle(modules_of(one)))]
    circles += [found] if (found := circle(graph)) else []
    return {
        "loose modules": len(loose()),
        "floors": "a circle" if circle(graph) else f"{len(chain(graph))}: {' > '.join(chain(graph))}",
        "arrows between units": sum(map(len, graph.values())),
        "circles": circles or 0,
        "shadowed modules": shadowed() or 0,
        "names in zoo.__all__": len(public()),
        f"functions over {LONG} lines": len(long_functions()),
        f"Any on {', '.join(sorted(ANY))}": len(untyped()),
    }


def test_no_module_is_loose():
    assert not loose(), "move it into a wing"


def test_units_import_each_other_in_no_circle():
    assert not circle(units())


def test_modules_of_a_unit_import_each_other_in_no_circle():
    assert not [found for one in sorted(units()) if (found := circle(modules_of(one)))]


def test_floors():
    assert len(chain(units())) <= FLOORS, " > ".join(chain(units()))


def test_no_module_is_shadowed():
    assert not shadowed()


def test_inner_modules_do_not_import_the_public_names_on_top():
    inner = [name for name in INNER if unit(name).removeprefix("zoo.") not in TOP]
    assert not [name for name in inner if "zoo" in imported(name)], "import from the module itself"


def test_functions_are_short():
    assert not long_functions()


def test_models_guides_and_rows_have_types():
    assert len(untyped()) <= ANY_LIMIT, untyped()


def test_few_names_stand_in_front():
    assert len(public()) <= PUBLIC


def test_models_and_guides_do_not_know_each_other():
    assert "guides" not in units()["zoo.models"]
    assert "zoo.models" not in units()["guides"]


def test_arviz_is_imported_in_one_file_alone():
    found = {name for name in MODULES if any(other.split(".")[0].startswith("arviz") for other in imported(name))}
    assert found == {"zoo.compat.container"}


def called(name: str) -> set[str]:
    """The names of everything that a module calls."""
    calls = (node.func for node in ast.walk(parse(name)) if isinstance(node, ast.Call))
    return {f.id if isinstance(f, ast.Name) else f.attr for f in calls if isinstance(f, ast.Name | ast.Attribute)}


def test_svi_is_built_in_fitting_alone():
    assert {name for name in MODULES if "SVI" in called(name)} == {"zoo.infer.fitting"}


def test_every_package_says_what_it_is_for_and_exports_what_it_imports():
    for name in sorted(name for name, path in MODULES.items() if path.stem == "__init__"):
        docstring, *statements = parse(name).body
        assert isinstance(docstring, ast.Expr), name
        if name == "zoo" or not statements:
            continue
        bound = [a.asname or a.name for s in statements if isinstance(s, ast.Import | ast.ImportFrom) for a in s.names]
        assert all(isinstance(s, ast.Import | ast.ImportFrom) for s in statements[:-1]), name
        assert isinstance(statements[-1], ast.Assign), name
        assert sorted(bound) == sorted(ast.literal_eval(statements[-1].value)), name


if __name__ == "__main__":
    for label, figure in figures().items():
        print(f"{label}: {figure}")
    for one, others in sorted(units().items()):
        print(f"  {one} <- {', '.join(sorted(others))}")
