"""The rules of the house, checked on the sources of a package: they are parsed, never imported.

Each function takes a package that `read_package` has read and returns one line for each violation: none when all is well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ORDER = (
    "errors",
    "words",
    "versions",
    "tiffs",
    "dicom",
    "outputs",
    "logs",
    "progress",
    "files",
    "stored_tiles",
    "readers",
    "slides",
    "masks",
    "annotations",
    "tiling",
    "quality",
    "models",
    "inference",
    "heatmaps",
    "pictures",
    "exports",
    "scanning",
    "datasets",
    "evaluation",
    "challenges",
    "training",
    "exchange",
    "worklist",
    "cohorts",
    "demo",
    "metadata",
    "checkup",
    "viewer",
    "cli",
    "__main__",
)
"""Root modules and packages in the order of the journey. Each imports only from itself and from those before it."""
ONLY_IN = {"click": ("cli",), "dask": ("scanning",), "distributed": ("scanning",), "tornado": ("viewer",)}
"""Libraries that only some packages may import."""
TABLE = "| package | modules | what it is for |\n"
"""First line of the table of rooms in the design."""
MAY_REACH = re.compile(r"\bsetattr\(|(?<!self)(?<!cls)\._[a-zA-Z]|\bimport [^\n]*\b_[a-zA-Z]|^    _\w+,$", re.MULTILINE)
"""Only tests that hold such a word are parsed: two thirds of the time are saved."""
MAX_ROOT_MODULES = 6
MAX_PACKAGE_FILES = 14
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_PARAMETERS = 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One import of one module, at any depth of a file, also inside a function or under ``TYPE_CHECKING``."""

    importer: str
    line: int
    target: str
    """Full name, of a module where it is one of the package's own."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


@dataclass(frozen=True)
class Package:
    """The sources of a package."""

    name: str
    sources: dict[str, str]
    """Text of each module by its full name; a package's ``__init__`` has the name of the package."""
    packages: frozenset[str]
    """Those of the modules that are packages."""
    public: dict[str, str]
    """Module of each public name, as ``__init__.pyi`` says."""
    trees: dict[str, ast.Module] = field(default_factory=dict)

    @cached_property
    def imports(self) -> list[Import]:
        """Every import in the package, those of its own modules resolved to the module that is meant."""
        found = (
            Import(module, line, target)
            for module, tree in self.trees.items()
            for line, name in _imported_names(self, module, tree)
            if (target := _resolve(self, name)) not in (self.name, module)
        )
        return sorted(set(found), key=lambda found: (found.importer, found.line, found.target))

    @cached_property
    def functions(self) -> list[tuple[str, Function]]:
        """Every function with its module."""
        return [(module, node) for module, tree in self.trees.items() for node in ast.walk(tree) if isinstance(node, Function)]

    def room(self, module: str) -> str:
        """Return the root module or package that a module belongs to; empty for the package's own ``__init__``."""
        return module.removeprefix(self.name).strip(".").partition(".")[0]


def read_package(folder: Path) -> Package:
    """Read and parse every module under a package's folder."""
    sources, packages = {}, set()
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[module] = path.read_text()
        if parts[-1] == "__init__":
            packages.add(module)
    trees = {module: ast.parse(text, module) for module, text in sources.items()}
    return Package(folder.name, sources, frozenset(packages), _public_names(folder), trees)


def wrong_order(package: Package) -> list[str]:
    """Return imports of a later room, and rooms that the order does not know."""
    rooms = {package.room(module) for module in package.sources} - {""}
    unknown = [f"{room}: not in the order of packages" for room in sorted(rooms - set(ORDER))]
    place = {room: position for position, room in enumerate(ORDER)}
    upward = [
        f"{found}, which comes later in the order of packages"
        for found in package.imports
        if place.get(package.room(found.importer), -1) < place.get(_own_room(package, found.target), -1)
    ]
    return unknown + upward


def circles(package: Package) -> list[str]:
    """Return one line for each module that imports itself by way of others, with that way."""
    graph: dict[str, set[str]] = {module: set() for module in package.sources}
    for found in package.imports:
        if found.target in graph:
            graph[found.importer].add(found.target)
    ways = (_way_back(graph, module) for module in sorted(graph))
    return [" -> ".join(way) for way in ways if way]


def foreign_imports(package: Package) -> list[str]:
    """Return imports of libraries outside the packages that may import them."""
    return [
        f"{found}; only {', '.join(ONLY_IN[library])} may"
        for found in package.imports
        if (library := found.target.partition(".")[0]) in ONLY_IN and package.room(found.importer) not in ONLY_IN[library]
    ]


def crowded(package: Package) -> list[str]:
    """Return too many root modules, packages of too many files and modules of too many lines."""
    root = [name for name in package.sources if name.count(".") == 1 and name not in package.packages]
    root = [name for name in root if not name.endswith("__main__")]
    violations = (
        [f"{len(root)} root modules; at most {MAX_ROOT_MODULES}: {', '.join(root)}"] if len(root) > MAX_ROOT_MODULES else []
    )
    for parent in sorted(package.packages - {package.name}):
        files = 1 + sum(name.rpartition(".")[0] == parent and name not in package.packages for name in package.sources)
        if files > MAX_PACKAGE_FILES:
            violations.append(f"{parent}: {files} files; at most {MAX_PACKAGE_FILES}")
    lengths = {name: len(text.splitlines()) for name, text in package.sources.items()}
    too_long = [
        f"{name}: {lines} lines; at most {MAX_MODULE_LINES}" for name, lines in lengths.items() if lines > MAX_MODULE_LINES
    ]
    return violations + too_long


def long_functions(package: Package) -> list[str]:
    """Return functions of too many lines.

    Docstrings do not count, nor do the signatures of public functions, which have one keyword option a line.
    """
    violations = []
    for module, function in package.functions:
        lines = _code_lines(function, signature=not _is_public(package, module, function))
        if lines > MAX_FUNCTION_LINES:
            violations.append(f"{module}:{function.lineno} {function.name}: {lines} lines; at most {MAX_FUNCTION_LINES}")
    return violations


def function_lengths(package: Package) -> dict[str, int]:
    """Return the lines of every function, from its ``def`` to its end with all between, by ``module:line name``."""
    return {
        f"{module}:{function.lineno} {function.name}": (function.end_lineno or function.lineno) - function.lineno + 1
        for module, function in package.functions
    }


def many_parameters(package: Package) -> list[str]:
    """Return functions of too many parameters.

    Keyword-only parameters of public functions, and of public classes when they are made, do not count. Nor do the parameters
    of a command: click gives them by name.
    """
    violations = []
    for module, function in package.functions:
        count = _count_parameters(function, keywords=not _is_public(package, module, function))
        if count > MAX_PARAMETERS and not _is_command(function):
            violations.append(f"{module}:{function.lineno} {function.name}: {count} parameters; at most {MAX_PARAMETERS}")
    return violations


def shadowed_names(package: Package) -> list[str]:
    """Return rooms with the name of a public function: importing such a room would replace the function."""
    rooms = {package.room(module) for module in package.sources} - {""}
    return [f"{room}: bears the name of {package.public[room]}.{room}" for room in sorted(rooms & set(package.public))]


def silent_packages(package: Package) -> list[str]:
    """Return packages whose ``__init__`` has no docstring."""
    return [f"{name}: no docstring" for name in sorted(package.packages) if not ast.get_docstring(package.trees[name])]


def design_gaps(package: Package, design: str) -> list[str]:
    """Return modules that the design's table of rooms leaves out, names in it that are no module, and rooms in another order.

    The table begins with `TABLE`. Rooms stand in the first column, the modules of a package in the second, in backticks.
    """
    rooms, named = [], set()
    for row in design.partition(TABLE)[2].partition("\n\n")[0].splitlines()[1:]:
        first, second = ([name.strip("/") for name in re.findall("`([^`]+)`", cell)] for cell in row.split("|")[1:3])
        rooms += first
        named |= {f"{package.name}.{room}" for room in first} | {f"{package.name}.{first[0]}.{name}" for name in second}
    modules = {module for module in package.sources if package.room(module) not in ("", "__main__")}
    gaps = [f"{module}: not in the table of rooms" for module in sorted(modules - named)]
    strangers = [f"{name}: in the table of rooms, but no module" for name in sorted(named - modules)]
    in_order = rooms == sorted(rooms, key=[*ORDER, *rooms].index)
    return gaps + strangers + ([] if in_order else ["the rooms of the table stand in another order than the packages"])


def patched_or_private(name: str, tests: dict[str, str]) -> list[str]:
    """Return what tests replace in a package's own modules, or use of them that is private, as ``file: name``.

    Parameters
    ----------
    name : of the package
    tests : text of each file by its name
    """
    parsed = {file: ast.parse(text) for file, text in tests.items() if MAY_REACH.search(text)}
    return sorted({f"{file}: {found}" for file, tree in parsed.items() for found in _reaches_into(name, tree)})


def _reaches_into(package: str, tree: ast.Module) -> Iterator[str]:
    """Yield what a test takes or replaces behind the public names of a package's modules."""
    ours = {package: package}
    """What the names of a file stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
            for alias in node.names:
                ours[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if _is_private(alias.name):
                    yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            ours |= {alias.asname: alias.name for alias in node.names if alias.asname and _is_ours(package, alias.name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and (place := _place_of(node.value, ours, package)):
            yield f"{place}.{node.attr}"
        elif isinstance(node, ast.Call) and _last_name(node.func) == "setattr" and node.args:
            first, *others = node.args
            if place := _place_of(first, ours, package):
                names = [ast.literal_eval(other) for other in others[:1] if isinstance(other, ast.Constant)]
                yield place if isinstance(first, ast.Constant) else ".".join([place, *map(str, names)])


def _place_of(node: ast.expr, ours: dict[str, str], package: str) -> str:
    """Return the full name of what an expression of a test stands for in the package; empty where it is something else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) and _is_ours(package, node.value) else ""
    if isinstance(node, ast.Name):
        return ours.get(node.id, "")
    if isinstance(node, ast.Attribute):
        return f"{place}.{node.attr}" if (place := _place_of(node.value, ours, package)) else ""
    if isinstance(node, ast.Call) and _last_name(node.func) == "import_module":
        return _place_of(node.args[0], ours, package)
    return ""


def _last_name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_ours(package: str, name: str) -> bool:
    return name.startswith(f"{package}.")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _public_names(folder: Path) -> dict[str, str]:
    stub = folder / "__init__.pyi"
    if not stub.exists():
        return {}
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{folder.name}.{node.module}" for node in imports for alias in node.names}


def _imported_names(package: Package, module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of whatever is imported; ``from a import b`` is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, module, node)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == package.name:
            yield node.lineno, f"{package.name}.{node.attr}"  # import wsi_meta; wsi_meta.scan()


def _absolute(package: Package, module: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".") if module in package.packages else module.split(".")[:-1]
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _resolve(package: Package, name: str) -> str:
    """Return the module of the package that a dotted name leads to; another library's name stays as it is."""
    if name.partition(".")[0] != package.name:
        return name
    while name not in package.sources:
        name, _, last = name.rpartition(".")
        if name == package.name:  # a name of its __init__, such as wsi_meta.scan
            return package.public.get(last, name)
    return name


def _own_room(package: Package, target: str) -> str:
    return package.room(target) if target.partition(".")[0] == package.name else ""


def _way_back(graph: dict[str, set[str]], start: str) -> list[str]:
    """Return the shortest way from a module by its imports back to itself; empty where there is none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for following in sorted(graph[way[-1]] - seen):
            if following == start:
                return [*way, start]
            seen.add(following)
            ways.append([*way, following])
    return []


def _code_lines(function: Function, signature: bool) -> int:
    documented = ast.get_docstring(function) is not None
    if documented and len(function.body) == 1:
        return 0
    end = function.end_lineno or function.lineno
    docstring = (function.body[0].end_lineno or 0) - function.body[0].lineno + 1 if documented else 0
    return end - function.lineno + 1 - docstring if signature else end - function.body[documented].lineno + 1


def _is_public(package: Package, module: str, function: Function) -> bool:
    """Tell whether a function is a public name of its module, or makes a class that is one."""
    names = {name for name, home in package.public.items() if home == module}
    for node in package.trees[module].body:
        if node is function or (isinstance(node, ast.ClassDef) and function.name == "__init__" and function in node.body):
            return node.name in names
    return False


def _count_parameters(function: Function, keywords: bool) -> int:
    arguments = function.args
    names = [argument.arg for argument in [*arguments.posonlyargs, *arguments.args]]
    positional = len(names) - (names[:1] in (["self"], ["cls"]))
    starred = (arguments.vararg is not None) + (arguments.kwarg is not None)
    return positional + starred + (len(arguments.kwonlyargs) if keywords else 0)


def _is_command(function: Function) -> bool:
    """Tell whether ``@click.command`` decorates a function."""
    return any(ast.unparse(decorator).startswith("click.command") for decorator in function.decorator_list)
