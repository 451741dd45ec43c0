"""The floors: imports go down only, no cycles, no grab-bag files, nothing too long. Read from the source as text."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "veneer"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE
FLOOR_OF = {  # lower number = closer to the ground; a module imports strictly lower floors or its own folder
    "errors": 0,
    "files": 1,
    "results": 2,
    "lora": 2,
    "formats": 3,
    "methods": 3,
    "data": 3,
    "training": 4,
    "paper": 5,
    "report": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 7
FORBIDDEN_STEMS = {"utils", "util", "helpers", "misc", "common", "other"}


def imported_components(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield (component, line) for each import of our own package, at any depth of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield "<relative import>", node.lineno
            elif node.module and node.module.split(".")[0] == PACKAGE:
                parts = node.module.split(".")[1:]
                for name in [parts[0]] if parts else [alias.name for alias in node.names]:
                    yield name, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(PACKAGE + "."):
                    yield alias.name.split(".")[1], node.lineno


def import_problems(where: str, here: str, tree: ast.Module) -> Iterator[str]:
    if here not in FLOOR_OF:
        yield f"{where}: no floor is set for {here!r}"
        return
    for target, line in imported_components(tree):
        if target != here and not FLOOR_OF.get(target, 99) < FLOOR_OF[here]:
            yield f"{where}:{line}: {here} (floor {FLOOR_OF[here]}) imports {target} (floor {FLOOR_OF.get(target)})"


def size_problems(where: str, here: str, text: str, tree: ast.Module) -> Iterator[str]:
    if (lines := text.count("\n")) > MAX_FILE_LINES:
        yield f"{where}: {lines} lines, the limit is {MAX_FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.body[0].lineno + 1 if here == "cli" else node.end_lineno - node.lineno + 1
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = len([a for a in arguments if a.arg not in {"self", "cls", "ctx"}])
            if length > MAX_FUNCTION_LINES:
                yield f"{where}:{node.lineno}: {node.name} has {length} lines, the limit is {MAX_FUNCTION_LINES}"
            if count > MAX_PARAMETERS and here != "cli":  # a command's parameters are its options
                yield f"{where}:{node.lineno}: {node.name} takes {count} parameters, the limit is {MAX_PARAMETERS}"


def problems(root: Path) -> list[str]:
    """Return every breach below `root`, in path order."""
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        here = relative.parts[0].removesuffix(".py")
        text = path.read_text()
        tree = ast.parse(text)
        found += import_problems(str(relative), here, tree)
        found += size_problems(str(relative), here, text, tree)
        if relative.stem in FORBIDDEN_STEMS:
            found.append(f"{relative}: name the file for what it does")
    return found


def module_graph(root: Path) -> dict[str, set[str]]:
    """Return which module imports which, within the package."""
    modules = {".".join((PACKAGE, *p.relative_to(root).with_suffix("").parts)): p for p in root.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        nodes = ast.walk(ast.parse(path.read_text()))
        sources = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        graph[name] = {source for source in sources if source in modules}
    return graph


def test_the_package_keeps_to_its_floors_and_sizes():
    assert problems(ROOT) == []


def test_no_two_modules_import_each_other_in_a_circle():
    graph = module_graph(ROOT)
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for target in graph[name]:
                walk(target, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("lora/x.py", "from veneer.data.splits import Splits\n", "lora (floor 2) imports data"),
        ("methods/x.py", "def f():\n    import veneer.formats.peft\n", "methods (floor 3) imports formats"),
        ("lora/x.py", "from . import y\n", "relative import"),
        ("new/x.py", "", "no floor is set"),
        ("lora/utils.py", "", "name the file for what it does"),
        ("lora/x.py", "\n" * 401, "401 lines"),
        ("lora/x.py", "def f(a, b, c, d, e, f, g, h): ...\n", "8 parameters"),
        ("lora/x.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    ],
)
def test_the_check_itself_can_fail(tmp_path, file, source, expected):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(source)
    assert any(expected in problem for problem in problems(tmp_path))
