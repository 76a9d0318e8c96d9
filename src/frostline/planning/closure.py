"""What reruns when a file changes: each stage's import closure, read from the source, and the libraries in it."""

import ast
import hashlib
from collections.abc import Collection
from pathlib import Path

PACKAGE = "frostline"
# Modules and rooms that record, check, describe or draw, and change no result: stages do not depend on them, or a new
# caption would run hours of training again. `params` and `hparams` are among them because DVC compares what they hold as
# values: params.yaml, and their defaults in locks/results.yaml.
BOOKKEEPING = frozenset(
    {
        *("__init__", "errors", "params", "hparams", "process", "scale", "tracking", "cli"),
        *(
            "planning.checks",
            "planning.closure",
            "planning.earlier",
            "planning.integrity",
            "planning.notes",
            "planning.settings",
            "planning.workspace",
        ),
        *("search.cache", "search.depot", "search.progress", "search.supply", "images.manifest"),
        *("evidence.card", "evidence.figures", "evidence.pages", "evidence.report"),
    }
)
# Imported name -> package, of the libraries whose version can change a result.
RESULT_LIBRARIES = {
    "albumentations": "albumentations",
    "cv2": "opencv-python-headless",
    "keras": "keras",
    "numpy": "numpy",
    "optuna": "optuna",
    "scipy": "scipy",
    "tensorflow": "tensorflow",
}


def import_closure(script: Path, source: Path, without: Collection[str] = ()) -> list[Path]:
    """The script and every `frostline` module that it imports, directly or not, inside functions too.

    source: the folder that holds the package; without: modules or packages (dotted, below the package) that are left out
    with all that only they import. Files that hold a docstring alone are left out, too. Sorted.

    >>> [path.name for path in import_closure(Path("src/frostline/seeding.py"), Path("src"))]
    ['seeding.py']
    """
    found: dict[Path, None] = {}
    seen: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in seen or _is_within(path, source, without):
            continue
        seen.add(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in tree.body):
            found[path] = None
        waiting += [module for name in imported_names(path) for module in _files_of(name, source)]
    return sorted(found)


def result_code(script: Path, source: Path) -> list[Path]:
    """The import closure of `script` without bookkeeping: what a stage's results depend on."""
    return import_closure(script, source, BOOKKEEPING)


def result_libraries(paths: Collection[Path]) -> list[str]:
    """The packages, of those whose version can change a result, that the files import; Keras brings TensorFlow."""
    names = {name.split(".")[0] for path in paths for name in _all_imports(path)}
    if "keras" in names:
        names.add("tensorflow")
    return sorted(package for name, package in RESULT_LIBRARIES.items() if name in names)


def imported_names(path: Path) -> set[str]:
    """Dotted names of ours that a file imports: "frostline.arrays", also for `from frostline import arrays`."""
    return {name for name in _all_imports(path) if name == PACKAGE or name.startswith(f"{PACKAGE}.")}


def code_of(module: str) -> str:
    """A digest of what the code of a module, and of all that it uses, does; by its name below the package: "images/views.py"."""
    source = Path(__file__).parents[2]
    return hash_code(result_code(source / PACKAGE / module, source))


def hash_code(paths: Collection[Path]) -> str:
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


def _all_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _is_within(path: Path, source: Path, modules: Collection[str]) -> bool:
    package = source / PACKAGE
    if not path.is_relative_to(package):
        return False
    parts = path.relative_to(package).with_suffix("").parts
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts) + 1))


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
