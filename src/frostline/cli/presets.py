"""Presets: named sets of values for `params.yaml`, applied without losing comments or anybody's edits."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from frostline.errors import Refused
from frostline.files import load_json, replacing, save_json
from frostline.process import ask_git

FOLDER = Path("presets")
DEFAULT = FOLDER / "default.yaml"
# The hash of params.yaml as a preset wrote it, and of what it replaced: as long as it is one of them, nobody has edited the file.
MEMORY = Path(".frostline/preset.json")


@dataclass(frozen=True)
class Preset:
    """A preset: `settings` maps names such as "tune.num_trials" to values; what it does not name is as in the default."""

    name: str
    about: str
    notes: str
    settings: Mapping[str, Any]


def list_presets(root: Path) -> list[Preset]:
    """All presets below `root`, by name; the default comes first."""
    names = [path.relative_to(root / FOLDER).with_suffix("").as_posix() for path in (root / FOLDER).rglob("*.yaml")]
    return [load_preset(root, name) for name in sorted(names, key=lambda name: (name != "default", name))]


def load_preset(root: Path, name: str) -> Preset:
    """The preset of that name; raises Refused that names the others where there is none."""
    path = root / FOLDER / f"{name}.yaml"
    if name == "default":
        return Preset(
            name,
            "generated images and EfficientNet-Lite0 with ImageNet weights from its package: runs anywhere, without a download",
            "",
            {},
        )
    if ".." in path.parts or not path.is_file():
        names = sorted(
            file.relative_to(root / FOLDER).with_suffix("").as_posix() for file in (root / FOLDER).rglob("*.yaml")
        )
        raise Refused(f"There is no preset {name!r}. There are: {', '.join(names)}.")
    document = _yaml().load(path)
    return Preset(name, document["about"], document.get("notes", ""), dict(document["settings"]))


def apply_settings(default: str, settings: Mapping[str, Any], reasons: Mapping[str, str] = MappingProxyType({})) -> str:
    """The text of `default` with the values of `settings`, its comments kept but where there is a reason of a setting.

    Raises Refused where a setting names a section that the default has not.
    """
    yaml = _yaml()
    document = yaml.load(default)
    for name, value in settings.items():
        *parents, last = name.split(".")
        section = document
        for parent in parents:
            if not isinstance(section, dict) or parent not in section:
                raise Refused(f"{name}: params.yaml has no section {parent!r}.")
            section = section[parent]
        section[last] = value
        if name in reasons:
            section.yaml_add_eol_comment(reasons[name], last, column=27)
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def write_params(root: Path, text: str, preset: str, *, force: bool = False) -> None:
    """Puts `text` in the place of `params.yaml`; `force`: without `refuse_edits`."""
    path = root / "params.yaml"
    if not force:
        refuse_edits(root, text)
    # First, and with what it replaces: a process that is killed between the two has left no edits of anybody's.
    before = _hash(path.read_text(encoding="utf-8")) if path.is_file() else None
    save_json(root / MEMORY, {"preset": preset, "sha256": _hash(text), "before": before})
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def refuse_edits(root: Path, text: str = "") -> None:
    """Raises Refused where another text would lose edits of `params.yaml`.

    That is where it is neither what a preset wrote last, nor what the last commit or the default holds.
    """
    path = root / "params.yaml"
    if path.is_file():
        current = path.read_text(encoding="utf-8")
        known = [text, (root / DEFAULT).read_text(encoding="utf-8"), ask_git(root, "show", "HEAD:./params.yaml")[0]]
        if current not in known and _hash(current) not in _remembered(root):
            raise Refused(
                "params.yaml has edits of yours, which `use` would overwrite. Commit them (git commit params.yaml), or throw "
                "them away with --force."
            )


def preset_of(root: Path) -> str | None:
    """The preset that wrote `params.yaml` as it is now; None where nobody did, or it was edited since."""
    path, memory = root / "params.yaml", root / MEMORY
    record = load_json(memory) if memory.is_file() else None
    return str(record["preset"]) if record and record["sha256"] == _hash(path.read_text(encoding="utf-8")) else None


def _remembered(root: Path) -> set[str | None]:
    memory = root / MEMORY
    record = load_json(memory) if memory.is_file() else {}
    return {record.get("sha256"), record.get("before")}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Representer(RoundTripRepresenter):  # type: ignore[misc]
    """Writes null as a word. Representers are kept by class, and ruamel's own is everybody's."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def _yaml() -> YAML:
    yaml = YAML()  # round trip: comments and order are kept
    yaml.width = 132
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.Representer = _Representer
    return yaml
