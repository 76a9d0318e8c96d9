"""What a worker reads of a project's data: put into `scale.store` by `tune`, and taken from there where a project has none."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from frostline.arrays import GROUPS, USE
from frostline.bases.features import POOLED
from frostline.errors import Refused
from frostline.files import COMPLETE, load_json, save_json, sha256_of
from frostline.params import Params, Paths
from frostline.process import work_folder
from frostline.search.cache import Cache, cache_folder
from frostline.search.depot import Depot, Missing, open_depot
from frostline.search.places import digest_of, list_studies
from frostline.search.space import with_found_depths
from frostline.search.study import JOB
from frostline.tracking.messages import say
from frostline.tracking.postgres import database_url

PLACES = ("features", "prepared", "views", "base")  # keys of `paths`, and the folders of a supply
MAPS = "features/depth-"  # what the names of maps begin with
MANIFEST = "manifest.json"
Entry = tuple[str, int]  # of a file: its sha256 and its bytes


@dataclass(frozen=True)
class Supply:
    """The files of a study, by their names below `folder`, in which those that were taken lie."""

    folder: Path
    entries: Mapping[str, Entry]
    cache: Cache

    def params(self, params: Params) -> Params:
        """The params with paths in this folder."""
        places = {name: str(self.folder / name) for name in PLACES}
        return params.model_copy(update={"paths": params.paths.model_copy(update=places)})

    def take_records(self) -> None:
        """Takes the records, which say what data this is."""
        self._take([name for name in self.entries if name.endswith(".json")], "records")

    def take_shared(self) -> None:
        """Takes what every trial reads: labels, the base, and all cuts pooled."""
        self._take([name for name in self.entries if not name.startswith(MAPS)], "what every trial reads")

    def take_maps(self, name: str) -> None:
        """Takes the maps in one folder of the features, and lets go of the others', which may make room for them."""
        wanted = [each for each in self.entries if each.startswith(f"features/{name}/")]
        for other in self.entries:
            if other.startswith(MAPS) and other not in wanted:
                (self.folder / other).unlink(missing_ok=True)
        self._take(wanted, name)

    def _take(self, names: list[str], what: str) -> None:
        started = time.monotonic()
        missing = [name for name in names if not (self.folder / name).is_file()]
        if taken := sum(self.cache.link(*self.entries[name], self.folder / name) for name in missing):
            took = f"{taken / 1e6:.3g} MB taken from {self.cache.depot.address} in {time.monotonic() - started:.1f} s"
            say("worker", f"{what}: {took}")


def put_supply(params: Params, depot: Depot | None) -> Entry | None:
    """Puts what workers read into the depot, and says so. Returns the manifest, which lists it and is put last.

    None where there is no depot, or the study is in a file, which nobody joins.
    """
    if depot is None or database_url() is None:
        return None
    entries: dict[str, Entry] = {}
    new = 0
    for name, path in _list_files(params.paths).items():
        entries[name] = (sha256_of(path), path.stat().st_size)
        new += depot.put(path, entries[name][0])
    with work_folder("supply") as folder:
        save_json(folder / MANIFEST, entries)
        manifest = (sha256_of(folder / MANIFEST), (folder / MANIFEST).stat().st_size)
        depot.put(folder / MANIFEST, manifest[0])
    held = f"{len(entries)} files, {sum(size for _, size in entries.values()) / 1e6:.3g} MB"
    say("tune", f"{held} for workers lie in {depot.address}; put there now: {new}")
    return manifest


@contextmanager
def find_data(params: Params) -> Iterator[tuple[Params, Callable[[str], None] | None]]:
    """The params by which a worker reads its data, and what takes the maps of a folder of the features before they are read.

    The data is in this project's folder or, where that has no features, taken from `scale.store`; then it goes with the block.
    """
    if params.scale.store is None or (Path(params.paths.features) / COMPLETE).is_file():
        yield params, None
        return
    with find_supply(params) as supply:
        yield supply.params(params), supply.take_maps


@contextmanager
def find_supply(params: Params) -> Iterator[Supply]:
    """What the study that these params mean reads, taken from the depot but for the maps; it goes with the block.

    Refused where there is no such study with a supply.
    """
    depot = open_depot(params)
    assert depot is not None
    cache = Cache(cache_folder(), int(params.scale.cache_gb * 1e9), depot)
    for digest, facts in list_studies(params):
        if not (manifest := facts.get(JOB, {}).get("manifest")):
            continue
        with cache.open_view() as folder:
            sha256, size = manifest
            try:
                cache.link(sha256, size, folder / MANIFEST)
                entries = {name: (sha256, size) for name, (sha256, size) in load_json(folder / MANIFEST).items()}
                supply = Supply(folder, entries, cache)
                supply.take_records()
            except Missing:  # of a study that is over: a rule of the bucket may have removed it
                continue
            if digest_of(with_found_depths(supply.params(params))) == digest:
                supply.take_shared()
                yield supply
                return
    raise Refused(
        f"No study of {params.tracking.experiment} has its features in {depot.address} and is what params.yaml says here. Start "
        "`dvc repro tune` first, with the same params.yaml and scale.store."
    )


def _list_files(paths: Paths) -> dict[str, Path]:
    """All that a worker reads, by its name in a supply; images, views and digests of rows are not."""
    features, prepared, base = Path(paths.features), Path(paths.prepared), Path(paths.base)
    files = [features / name for name in (COMPLETE, "features.json", GROUPS, USE)]
    files += [path for name in (POOLED, "depth-*") for path in features.glob(f"{name}/*.npy")]
    files += [prepared / name for name in (COMPLETE, "classes.json")]
    files += [prepared / split / name for split in ("train", "val") for name in ("labels.npy", "groups.npy")]
    files += [Path(paths.views) / COMPLETE]
    files += [base / name for name in (COMPLETE, "card.json", load_json(base / "card.json")["file"]) if name]
    roots = {name: Path(getattr(paths, name)) for name in PLACES}
    return {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in roots.items()
        for path in sorted(files)
        if path.is_relative_to(root) and path.is_file()
    }
