"""The shape that docs/DESIGN.md describes, read from the imports, `dvc.yaml`, `pyproject.toml` and the locks."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from frostline.closure import BOOKKEEPING, imported_names, result_code

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "frostline"
STAGES = ["fetch", "prepare", "augment", "extract", "tune", "refit", "evaluate", "register"]
# The short list that `make lock` writes; a new TensorFlow runs every stage again.
RESULTS = "locks/results.txt"

# A module imports only what stands before it. A package counts as one.
ORDER = """
    __init__ process progress seeding families params closure arrays decoding folders generated sources presets preparation augmentation
    checks hparams devices backbones fusion classifier optimizers training features probe equivalence search metrics selection
    figures tracking serving registry leftovers explanation cards trials pretraining planning export direct cli
""".split()

# Library -> the modules that may import it.
HOMES = {
    "albumentations": {"augmentation"},
    "optuna": {"search", "trials"},
    "mlflow": {"tracking", "registry", "serving", "leftovers"},
    "ruamel": {"params", "presets"},
    "pydantic": {"params"},
    "matplotlib": {"figures"},
    "tensorflow": {"devices"},
    "jax": {"devices"},
    "tensorflow_datasets": {"sources"},
    "onnxruntime": {"export"},
    "keras": {
        *("devices", "backbones", "fusion", "classifier", "optimizers", "training", "features", "probe", "equivalence"),
        *("trials", "explanation", "pretraining", "planning", "export", "serving"),
    },
}
# These never import Keras when they are loaded: it costs 5 to 14 seconds.
LIGHT_STAGES = ["fetch", "prepare", "augment", "register"]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def noun_of(path: Path) -> str:
    """`frostline/arrays.py` and `frostline/generated/scenes.py` -> arrays, generated."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def test_every_module_has_its_place_in_the_order():
    strangers = {noun_of(path) for path in modules()} - set(ORDER)
    assert not strangers, f"Say where these stand, in ORDER of {Path(__file__).name}: {sorted(strangers)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward_only(path):
    noun = noun_of(path)
    below = set(ORDER[: ORDER.index(noun) + 1])
    upward = {
        name
        for name in imported_names(path)
        if name.count(".") >= 1 and name.split(".")[1] in ORDER and name.split(".")[1] not in below
    }
    assert not upward, f"{noun} stands below what it imports: {sorted(upward)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_heavy_library_has_a_home(path):
    noun = noun_of(path)
    strays = [
        f"line {line}: {library} belongs to {', '.join(sorted(HOMES[library]))}"
        for library, line in imports_of(path)
        if library in HOMES and noun not in HOMES[library]
    ]
    assert not strays, f"{path.relative_to(ROOT)}: " + "; ".join(strays)


def test_only_trials_and_the_commands_know_keras_optuna_and_mlflow_at_once():
    keras = {f"frostline.{noun}" for noun in HOMES["keras"] - {"serving"}}
    mlflow = {f"frostline.{noun}" for noun in HOMES["mlflow"]}
    for path in modules():
        if noun_of(path) not in ("trials", "cli"):
            names = imported_names(path)
            assert not (names & keras and names & mlflow and "frostline.search" in names), path


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


@pytest.mark.parametrize("stage", LIGHT_STAGES)
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


def test_the_eight_stages_stand_in_dvc_yaml_and_in_pipelines():
    assert list(dvc_stages()) == STAGES
    assert sorted(path.stem for path in ROOT.glob("pipelines/*.py")) == sorted(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_short_and_of_the_common_shape(stage):
    text = (ROOT / "pipelines" / f"{stage}.py").read_text(encoding="utf-8")
    assert 15 <= text.count("\n") <= 80, f"{text.count(chr(10))} lines"
    assert text.startswith(f'"""Stage `{stage}`: ')
    assert "def main() -> None:" in text
    assert text.rstrip().endswith(f'if __name__ == "__main__":\n    run_stage("{stage}", main)')


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_deps_are_the_import_closure_of_its_script(stage):
    """DVC follows declared files only: an undeclared module could change and the old result stay."""
    wanted = code_of(stage)
    declared = [dep for dep in map(str, dvc_stages()[stage]["deps"]) if dep.endswith(".py") or dep == RESULTS]
    block = "\n".join(f"      - {dep}" for dep in wanted)
    assert sorted(declared) == sorted(wanted), (
        f"Run `make deps`. The code in `deps:` of stage {stage} should be\n{block}"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_started_as_its_own_script(stage):
    assert dvc_stages()[stage]["cmd"] == f"python pipelines/{stage}.py"


def test_bookkeeping_names_only_modules_that_exist():
    nouns = {noun_of(path) for path in modules()}
    assert nouns >= BOOKKEEPING, f"BOOKKEEPING of frostline.closure names no module: {sorted(BOOKKEEPING - nouns)}"


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
    names = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "ruamel": "ruamel-yaml", "PIL": "pillow"}
    for path in [*modules(), *ROOT.glob("pipelines/*.py")]:
        for library, line in imports_of(path):
            if library not in sys.stdlib_module_names and library not in ("frostline", "__future__"):
                name = names.get(library, library.replace("_", "-"))
                optional = noun_of(path) in HOMES.get(library, ()) if path.is_relative_to(PACKAGE) else False
                assert name in declared or (name in extras and optional), f"{path}:{line}: {library} is not declared"


def test_the_list_of_libraries_that_change_results_is_that_of_the_lock():
    locked = locked_versions(ROOT / "locks" / "dev.txt")
    results = (ROOT / RESULTS).read_text().split()
    assert len(results) == 7
    for line in results:
        name, version = line.split("==")
        assert locked[name] == version, f"{RESULTS} says {line}, the lock {version}. Run `make lock`."


@pytest.mark.parametrize("extra", ["gpu", "jax", "tfds", "ray"])
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
    if lock.name != "results.txt":
        requirements = re.split(r"\n(?=\S)", text.strip())
        assert all("--hash=sha256:" in requirement for requirement in requirements)


def test_the_lock_satisfies_what_the_project_declares():
    from packaging.requirements import Requirement

    locked = locked_versions(ROOT / "locks" / "dev.txt")
    for line in [*project()["dependencies"], *project()["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[requirement.name]), f"{line}, locked is {locked[requirement.name]}"


def dvc_stages() -> dict:
    return YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]


def outs_of(stage: dict) -> Iterator[dict | str]:
    for key in ("outs", "metrics", "plots"):
        yield from stage.get(key, [])


def code_of(stage: str) -> list[str]:
    code = result_code(ROOT / "pipelines" / f"{stage}.py", SOURCE)
    return [*(str(path.relative_to(ROOT)) for path in code), RESULTS]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9-]", requirement)[0].lower()


def locked_versions(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock.read_text(), flags=re.MULTILINE))
