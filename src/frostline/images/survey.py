"""What `fetch.source` and `base.weights` hold now, by names and contents; hashed only where size or time changed."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frostline.files import COMPLETE, digest_facts, load_json, path_of, sha256_of
from frostline.images.folders import find_layout
from frostline.images.sources import shown_source, source_of
from frostline.params import Base, Fetch

# What stage `source` writes, and `fetch` depends on.
SOURCE_FILE = "data/source.json"
# Kept from run to run: path -> [size, time of change, time of the entry's change, sha256].
MEMORY = Path(".frostline/survey.json")
WEIGHTS = ("package", "bundled", "imagenet", "random")

Memory = dict[str, list[Any]]


@dataclass
class Survey:
    """record: a digest of each input, and the number of its files; memory: what the next survey need not hash again."""

    record: dict[str, Any]
    memory: Memory = field(default_factory=dict)


def inputs_of_fetch(fetch: Fetch) -> dict[str, str]:
    """`fetch.source` where it is a path of this machine, under its key."""
    return {"fetch.source": fetch.source} if source_of(fetch).is_path else {}


def inputs_of_base(base: Base) -> dict[str, str]:
    """`base.weights` where they are a file of this machine, under its key."""
    return {} if base.weights in WEIGHTS else {"base.weights": base.weights}


def survey_inputs(
    fetch: Fetch, base: Base, root: Path, memory: Mapping[str, list[Any]], before: Mapping[str, Any]
) -> Survey:
    """What both inputs hold. before: the last record, which stands for an input that is not here any more.

    Raises Refused where a folder has no layout that `fetch` could read.
    """
    survey = Survey({})
    inputs = inputs_of_fetch(fetch) | inputs_of_base(base)
    for key, section in (("fetch.source", fetch), ("base.weights", base)):
        place = path_of(inputs[key], root) if key in inputs else None
        if place is None:
            survey.record[key] = {"digest": digest_facts(section.model_dump(mode="json")), "num_files": None}
        elif place.is_dir():
            layout = find_layout(place, follow_links=fetch.follow_links, encoding=fetch.encoding)
            files = {entry.image_id: entry.path for entry in layout.entries}
            survey.record[key] = {
                "digest": _digest(sorted(files.items()), memory, survey.memory),
                "num_files": len(files),
            }
        elif place.is_file():
            survey.record[key] = {
                "digest": _digest([("", str(place))], memory, survey.memory),
                "num_files": 1,
            }
        else:
            survey.record[key] = before.get(key)
    return survey


def describe_changes(fetch: Fetch, base: Base, raw: Path, root: Path) -> list[str]:
    """What a person should know of inputs that changed since `raw` was made from them, a line each; nothing is written.

    Empty, too, where nothing was made yet, or where what was made came from another source.
    """
    record, marker, memory = root / SOURCE_FILE, root / raw / COMPLETE, root / MEMORY
    if not record.is_file() or not marker.is_file() or load_json(marker).get("source") != shown_source(fetch.source):
        return []
    before, made = load_json(record), load_json(marker)
    now = survey_inputs(fetch, base, root, load_json(memory) if memory.is_file() else {}, before).record
    lines = []
    images = now.get("fetch.source") or {}
    num_files = images.get("num_files")
    is_folder = "fetch.source" in inputs_of_fetch(fetch) and path_of(fetch.source, root).is_dir()
    if is_folder and num_files != made.get("num_files"):
        lines.append(
            f"{fetch.source}: made from {made.get('num_files')} files, the folder holds {num_files}. `dvc repro` reads it again"
        )
    elif before.get("fetch.source") != now.get("fetch.source"):
        lines.append(f"{fetch.source}: its files changed since they were read. `dvc repro` reads them again")
    if before.get("base.weights") != now.get("base.weights"):
        lines.append(f"{base.weights}: the weights changed since they were read. `dvc repro` reads them again")
    return lines


def _digest(files: Iterable[tuple[str, str]], known: Mapping[str, list[Any]], memory: Memory) -> str:
    """A digest of names and contents; fills `memory` with what was hashed, or known by size and times."""
    whole = hashlib.sha256()
    for name, path in files:
        place = Path(path)
        facts = place.stat()
        seen = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
        key = str(place.absolute())
        entry = known.get(key)
        if entry is None or entry[:3] != seen:
            entry = [*seen, sha256_of(place)]
        memory[key] = entry
        whole.update(f"{name}\0{entry[3]}\n".encode())
    return whole.hexdigest()
