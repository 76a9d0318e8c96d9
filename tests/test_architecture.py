"""The shape that docs/architecture.md describes, read from the imports, `dvc.yaml`, `pyproject.toml` and the locks."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from frostline.planning.closure import BOOKKEEPING, imported_names, result_code

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "frostline"
RESULTS = "locks/results.yaml"  # what `make deps` writes; a new TensorFlow runs the stages that use it again

# The ground floor, and on it a room for each station of the line. A room imports only rooms and modules before it.
GROUND = "__init__ errors process files seeding arrays hparams params scale devices".split()
ROOMS = "images bases evidence training tracking search planning serving registry cli".split()
ORDER = [*GROUND, *ROOMS]

# Library -> the rooms and modules that may import it.
HOMES = {
    "albumentations": {"images.transforms", "images.views"},
    "optuna": {"search"},
    "sqlalchemy": {"tracking.postgres"},
    "fsspec": {"search.depot"},
    "mlflow": {"tracking", "registry", "serving"},
    "ruamel": {"params", "cli.presets"},
    "pydantic": {"params"},
    "matplotlib": {"evidence.figures"},
    "jinja2": {"evidence.pages"},
    "tensorflow": {"devices"},
    "jax": {"devices"},
    "tensorflow_datasets": {"images"},
    "onnxruntime": {"serving"},
    "keras": {"devices", "serving.model"},
    "ray": {"scale.cluster"},
}
# These never import Keras when they are loaded: it costs 5 to 14 seconds.
LIGHT_STAGES = {"source", "fetch", "prepare", "augment", "register"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """`frostline/arrays.py` and `frostline/images/folders.py` -> arrays, images."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of_module(path: Path) -> str:
    """`frostline/images/folders.py` -> images.folders."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def is_at_home(path: Path, library: str) -> bool:
    name = name_of_module(path)
    return any(name == home or name.startswith(f"{home}.") for home in HOMES[library])


def stage_names() -> list[str]:
    return list(dvc_stages())


def dvc_stages() -> dict:
    return YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]


def imports_of(path: Path, *, at_load_only: bool = False) -> Iterator[tuple[str, int]]:
    """(top-level library, line) of each import that is not ours; `at_load_only` leaves out what stands in functions."""
    for node in walk(ast.parse(path.read_text(encoding="utf-8")), at_load_only):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno


def walk(node: ast.AST, at_load_only: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_load_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        # `if TYPE_CHECKING:` is never run.
        if at_load_only and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from walk(child, at_load_only)


def loaded_with(path: Path) -> set[Path]:
    """The file and every module of ours that is imported when it is loaded."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        for node in walk(ast.parse(current.read_text(encoding="utf-8")), True):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.split(".")[0] == "frostline":
                    parts = name.split(".")
                    for stem in (SOURCE.joinpath(*parts[:end]) for end in range(1, len(parts) + 1)):
                        waiting += [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
    return found


def test_the_rooms_are_the_stations_of_the_line_on_a_small_ground_floor():
    names = {room_of(path) for path in modules()}
    assert names == set(ORDER), f"Say where these stand, in {Path(__file__).name}: {sorted(names ^ set(ORDER))}"
    assert len(names - {"__init__"}) <= 19


def test_a_room_of_its_own_says_what_it_is_and_hands_nothing_on():
    """A name that a package's `__init__` hands on makes all files of the package deps of whoever takes it."""
    for path in modules():
        if path.name == "__init__.py" and path.parent not in (PACKAGE, PACKAGE / "cli"):
            (node,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant), path


@pytest.mark.parametrize("path", modules(), ids=name_of_module)
def test_imports_go_downward_only(path):
    room = room_of(path)
    above = set(ORDER[ORDER.index(room) + 1 :])
    upward = {name for name in imported_names(path) if name.count(".") and name.split(".")[1] in above}
    assert not upward, f"{room} stands below what it imports: {sorted(upward)}"


def test_no_two_modules_import_each_other():
    """Within a room, too: a circle can only be read as a whole."""
    names = {name_of_module(path) for path in modules()}
    imports = {
        name_of_module(path): {
            name.removeprefix("frostline.") for name in imported_names(path) if name.removeprefix("frostline.") in names
        }
        for path in modules()
    }
    order: list[str] = []
    while len(order) < len(imports):
        free = sorted(name for name in imports.keys() - set(order) if imports[name] - {name} <= set(order))
        assert free, f"a circle among {sorted(imports.keys() - set(order))}"
        order += free


@pytest.mark.parametrize("path", modules(), ids=name_of_module)
def test_each_heavy_library_has_a_home(path):
    strays = [
        f"line {line}: {library} belongs to {', '.join(sorted(HOMES[library]))}"
        for library, line in imports_of(path)
        if library in HOMES and not is_at_home(path, library)
    ]
    assert not strays, f"{path.relative_to(ROOT)}: " + "; ".join(strays)


def test_only_the_search_and_the_commands_know_keras_optuna_and_mlflow_at_once():
    for path in modules():
        if room_of(path) not in ("search", "cli"):
            rooms = {name.split(".")[1] for name in imported_names(path) if name.count(".")}
            assert not ({"training", "search", "tracking"} <= rooms), path


def test_nothing_imports_a_stage_and_no_import_is_relative():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, (
                    f"{path}:{node.lineno}: write `from frostline.… import`, closures are read from it"
                )
        assert "pipelines" not in {library for library, _ in imports_of(path)}, path


def test_nothing_runs_text_or_unpickles():
    for path in [*modules(), *ROOT.glob("pipelines/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
        assert not {"pickle", "dill", "cloudpickle", "shelve"} & {library for library, _ in imports_of(path)}, path
        assert path.stem not in ("utils", "helpers", "common"), f"{path}: a module is a noun"


@pytest.mark.parametrize("stage", [name for name in stage_names() if name in LIGHT_STAGES])
def test_stages_that_need_no_network_are_loaded_without_keras(stage):
    script = ROOT / "pipelines" / f"{stage}.py"
    heavy = {
        f"{path.name} imports {library}"
        for path in loaded_with(script)
        for library, _ in imports_of(path, at_load_only=True)
        if library in ("keras", "tensorflow", "jax")
    }
    assert not heavy


def test_processes_that_draw_views_load_little():
    probe = (
        "import runpy, sys; runpy.run_path('pipelines/augment.py', run_name='__mp_main__')\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'optuna', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, timeout=60, cwd=ROOT)


def test_help_loads_no_heavy_library():
    probe = (
        "import sys; from frostline.cli import main; sys.argv = ['frostline', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'optuna', 'matplotlib', 'cv2', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, timeout=60)


def test_each_stage_of_dvc_yaml_is_a_script_of_its_name():
    assert sorted(path.stem for path in ROOT.glob("pipelines/*.py")) == sorted(stage_names())


@pytest.mark.parametrize("stage", stage_names())
def test_a_stage_is_short_and_of_the_common_shape(stage):
    text = (ROOT / "pipelines" / f"{stage}.py").read_text(encoding="utf-8")
    assert 15 <= text.count("\n") <= 80, f"{text.count(chr(10))} lines"
    assert text.startswith(f'"""Stage `{stage}`: ')
    assert "def main() -> None:" in text
    assert text.rstrip().endswith(f'if __name__ == "__main__":\n    run_stage("{stage}", main)')


def test_what_reruns_is_what_the_code_says(tmp_path, monkeypatch):
    """DVC follows declared files and values only: an undeclared module could change and the old result stay."""
    writer = load_script("write-deps")
    files = ("dvc.yaml", RESULTS, "docs/architecture.md")
    for name in (*files, "locks/dev.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("src", "pipelines"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr(writer, "ROOT", tmp_path)
    writer.main()
    for name in files:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"Run `make deps`: {name} is not up to date."


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("stage", stage_names())
def test_a_stage_depends_on_no_module_that_only_a_later_stage_needs(stage):
    """Of the rooms, each stage knows those that it works in; the one pass over the prefix knows no training."""
    rooms = {
        "source": {"images", "planning"},
        "fetch": {"images", "bases"},
        "prepare": {"images"},
        "augment": {"images", "planning"},
        "extract": {"images", "bases", "planning"},  # of images, the rows
        "tune": {"bases", "training", "search", "evidence"},
        "refit": {"bases", "training", "evidence", "planning"},
        "evaluate": {"images", "evidence", "serving"},
        "register": {"images", "serving", "registry", "evidence"},
    }[stage]
    code = [path for path in result_code(ROOT / "pipelines" / f"{stage}.py", SOURCE) if path.is_relative_to(PACKAGE)]
    assert {room_of(path) for path in code} - set(GROUND) <= rooms


def test_words_and_images_rerun_nothing():
    deps = {dep for stage in dvc_stages().values() for dep in map(str, stage["deps"])}
    for path in (
        "tracking/messages.py",
        "planning/notes.py",
        "evidence/figures/canvas.py",
        "evidence/card.py",
        "params.py",
    ):
        assert (PACKAGE / path).is_file() and f"src/frostline/{path}" not in deps


@pytest.mark.parametrize("stage", stage_names())
def test_a_stage_is_started_as_its_own_script(stage):
    assert dvc_stages()[stage]["cmd"] == f"python pipelines/{stage}.py"


def test_bookkeeping_names_only_modules_that_exist():
    names = {name_of_module(path).removesuffix(".__init__") for path in modules()}
    assert names >= BOOKKEEPING, f"frostline.planning.closure names no module: {sorted(BOOKKEEPING - names)}"


def test_no_two_stages_share_an_output_and_none_is_the_tracking_store():
    outs = [
        next(iter(out)) if isinstance(out, dict) else str(out)
        for stage in dvc_stages().values()
        for out in outs_of(stage)
    ]
    assert len(outs) == len(set(outs))
    # An output is deleted before its stage runs: the history of runs would be gone.
    assert not [out for out in outs if out.startswith(("mlruns", "mlflow.db", "studies"))]


def test_every_imported_library_is_declared():
    declared = {name_of(line) for line in project()["dependencies"]}
    extras = {name_of(line) for lines in project()["optional-dependencies"].values() for line in lines}
    names = {
        "cv2": "opencv-python-headless",
        "sklearn": "scikit-learn",
        "ruamel": "ruamel-yaml",
        "PIL": "pillow",
        "yaml": "pyyaml",
    }
    for path in [*modules(), *ROOT.glob("pipelines/*.py")]:
        for library, line in imports_of(path):
            if library not in sys.stdlib_module_names and library not in ("frostline", "__future__"):
                name = names.get(library, library.replace("_", "-"))
                optional = path.is_relative_to(PACKAGE) and library in HOMES and is_at_home(path, library)
                assert name in declared or (name in extras and optional), f"{path}:{line}: {library} is not declared"


@pytest.mark.parametrize("extra", ["gpu", "jax", "tfds", "ray", "lite"])
def test_an_extra_changes_no_version_of_the_base(extra):
    base, more = (locked_versions(ROOT / "locks" / f"{name}.txt") for name in ("dev", extra))
    assert {name: more.get(name) for name in base} == base
    wanted = {name_of(line) for line in project()["optional-dependencies"][extra]}
    assert wanted <= set(more)
    assert len(more) > len(base)


@pytest.mark.parametrize("lock", sorted(ROOT.glob("locks/*.txt")), ids=lambda lock: lock.stem)
def test_a_lock_has_hashes_and_names_no_index(lock):
    text = lock.read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    requirements = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in requirement for requirement in requirements)


def test_the_lock_satisfies_what_the_project_declares():
    from packaging.requirements import Requirement

    locked = locked_versions(ROOT / "locks" / "dev.txt")
    for line in [*project()["dependencies"], *project()["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[requirement.name]), f"{line}, locked is {locked[requirement.name]}"


def outs_of(stage: dict) -> Iterator[dict | str]:
    for key in ("outs", "metrics", "plots"):
        yield from stage.get(key, [])


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9-]", requirement)[0].lower()


def locked_versions(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock.read_text(), flags=re.MULTILINE))
