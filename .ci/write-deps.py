"""Writes the import closure of every stage's script into the `deps:` of dvc.yaml (`make deps`, after a change of imports)."""

import sys
from pathlib import Path

from ruamel.yaml import YAML

from frostline.closure import result_code

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "locks/results.txt"


def main() -> None:
    yaml = YAML()
    yaml.width = 132
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(ROOT / "dvc.yaml")
    for name, stage in document["stages"].items():
        code = [str(path.relative_to(ROOT)) for path in result_code(ROOT / "pipelines" / f"{name}.py", ROOT / "src")]
        data = [dep for dep in stage["deps"] if not dep.endswith(".py") and dep != RESULTS]
        stage["deps"] = [*code, RESULTS, *data]
    yaml.dump(document, ROOT / "dvc.yaml")


if __name__ == "__main__":
    sys.exit(main())
