"""Which of our modules a script runs: its import closure, read from the source."""

import ast
import hashlib
from collections.abc import Collection
from pathlib import Path

PACKAGE = "frostline"
# Modules that record, check or draw, and change no result: stages do not depend on them, or a new caption would run
# hours of training again. `params` is among them because DVC compares the values themselves.
BOOKKEEPING = frozenset(
    {"__init__", "process", "progress", "params", "closure", "checks", "tracking", "figures", "cards"}
)


def import_closure(script: Path, source: Path, without: Collection[str] = ()) -> list[Path]:
    """The script and every `frostline` module that it imports, directly or not, inside functions too.

    source: the folder that holds the package; without: modules (the first name below the package) that are left out
    with all that only they import. Sorted; a package's `__init__` counts where a module below it is imported.
    """
    found: dict[Path, None] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found and _noun_of(path, source) not in without:
            found[path] = None
            waiting += [module for name in imported_names(path) for module in _files_of(name, source)]
    return sorted(found)


def result_code(script: Path, source: Path) -> list[Path]:
    """The import closure of `script` without bookkeeping: what a stage's results depend on."""
    return import_closure(script, source, BOOKKEEPING)


def imported_names(path: Path) -> set[str]:
    """Dotted names of ours that a file imports: "frostline.arrays", also for `from frostline import arrays`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name == PACKAGE or name.startswith(f"{PACKAGE}.")}


def hash_code(paths: list[Path]) -> str:
    """A digest of what the code does: of its syntax trees, so that comments, layout and docstrings do not count."""
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body[0].value.value = ""
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def _noun_of(path: Path, source: Path) -> str:
    package = source / PACKAGE
    return path.relative_to(package).parts[0].removesuffix(".py") if path.is_relative_to(package) else ""


def _files_of(name: str, source: Path) -> list[Path]:
    parts = name.split(".")
    files = []
    for end in range(1, len(parts) + 1):
        stem = source.joinpath(*parts[:end])
        if (stem / "__init__.py").is_file():
            files.append(stem / "__init__.py")
        elif stem.with_suffix(".py").is_file():
            files.append(stem.with_suffix(".py"))
    return files
