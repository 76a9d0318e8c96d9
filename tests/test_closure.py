"""The import closure of a script."""

from pathlib import Path

from frostline.planning.closure import hash_code, import_closure, result_code


def make_package(root: Path) -> Path:
    package = root / "src" / "frostline"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text('"""Only words."""\n')
    (package / "a.py").write_text("from frostline import b\n")
    (package / "b.py").write_text("def f():\n    from frostline.deep.c import g\n    return g\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "c.py").write_text("g = 1\n")
    (package / "unused.py").write_text("x = 1\n")
    script = root / "stage.py"
    script.write_text("import os\nfrom frostline.a import b\n")
    return script


def test_the_closure_follows_imports_through_modules_and_functions(tmp_path: Path) -> None:
    script = make_package(tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in import_closure(script, tmp_path / "src")}
    package = "src/frostline"
    assert found == {
        "stage.py",
        f"{package}/a.py",
        f"{package}/b.py",
        f"{package}/deep/c.py",
    }


def test_what_only_bookkeeping_imports_changes_no_result(tmp_path: Path) -> None:
    script = make_package(tmp_path)
    package = tmp_path / "src" / "frostline"
    (package / "tracking.py").write_text("from frostline.deep import c\nfrom frostline import unused\n")
    script.write_text("from frostline import a, tracking\n")
    found = {path.relative_to(tmp_path).as_posix() for path in result_code(script, tmp_path / "src")}
    names = ("a", "b", "deep/c")
    assert found == {"stage.py", *(f"src/frostline/{name}.py" for name in names)}


def test_a_comment_or_docstring_does_not_change_the_code_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('"""One."""\nx = 1\n')
    before = hash_code([path])
    path.write_text('"""Two."""\n# why\nx = 1\n')
    assert hash_code([path]) == before
    path.write_text('"""Two."""\nx = 2\n')
    assert hash_code([path]) != before
