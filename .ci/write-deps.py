"""What reruns when: `locks/results.yaml`, the code and values in `dvc.yaml`, and the table in docs/architecture.md.

`make deps` runs it after a change of imports, defaults or locks; tests/test_architecture.py holds the files to it.
"""

import re
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from frostline.params import defaults
from frostline.planning.closure import RESULT_LIBRARIES, result_code, result_libraries

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "locks/results.yaml"
TABLE = re.compile(r"(?<=<!-- what reruns -->\n).*?(?=<!-- end -->)", re.DOTALL)


def make_results(lock: str) -> dict[str, Any]:
    """The versions of the libraries that change results, by the lock, and the defaults of `params.py`."""
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock, flags=re.MULTILINE))
    return {"versions": {name: locked[name] for name in sorted(RESULT_LIBRARIES.values())}, "defaults": defaults()}


def make_stage(name: str, stage: Any, results: dict[str, Any]) -> None:
    """Sets the code among a stage's deps, and the versions and defaults among its params."""
    code = result_code(ROOT / "pipelines" / f"{name}.py", ROOT / "src")
    data = [dep for dep in stage["deps"] if not dep.endswith(".py")]
    stage["deps"] = [*(str(path.relative_to(ROOT)) for path in code), *data]
    own = [param for param in stage["params"] if isinstance(param, str)]
    values = [f"versions.{library}" for library in result_libraries(code)]
    values += [f"defaults.{param}" for param in own if _has(results["defaults"], param)]
    stage["params"] = [*own, {RESULTS: values}]


def _has(defaults: dict[str, Any], param: str) -> bool:
    section, _, key = param.partition(".")
    return section in defaults and (not key or key in defaults[section])


def make_table(stages: dict[str, Any]) -> str:
    """A row for each module of ours: the stages that depend on it."""
    rows = ["| module | stages that run again when it changes |", "|---|---|"]
    for path in sorted((ROOT / "src" / "frostline").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        found = [stage for stage, facts in stages.items() if name in facts["deps"]]
        if path.name != "__init__.py":
            rows.append(f"| `{name.removeprefix('src/frostline/')}` | {', '.join(found) or '–'} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    yaml = YAML()
    yaml.width = 132
    yaml.indent(mapping=2, sequence=4, offset=2)
    results = make_results((ROOT / "locks" / "dev.txt").read_text(encoding="utf-8"))
    yaml.dump(results, ROOT / RESULTS)
    document = yaml.load(ROOT / "dvc.yaml")
    for name, stage in document["stages"].items():
        make_stage(name, stage, results)
    yaml.dump(document, ROOT / "dvc.yaml")
    page = ROOT / "docs" / "architecture.md"
    table = make_table(document["stages"])
    page.write_text(TABLE.sub(lambda _: table, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
