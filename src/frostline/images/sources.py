"""Where images come from: a folder, an archive, a URL, `tfds:<name>`, a named source, or `generated` -> class folders."""

import importlib.util
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from frostline.errors import Refused, nearest, redact
from frostline.files import mark_complete, path_of, sha256_of
from frostline.images.archives import check_archive, extract_archive
from frostline.images.downloads import LOCK_FILE, check_url, download, refuse_secret
from frostline.images.folders import Layout, copy_layout, find_layout, read_layout, require_space
from frostline.images.names import SPLIT_NAMES
from frostline.params import Fetch

DOWNLOADS = Path(".frostline/downloads")
NO_TFDS = "needs the extra `tfds`, which is not installed. Run `make env EXTRA=tfds`."


@dataclass(frozen=True)
class Archive:
    """One archive of a named source. split: where the archive is one split of the set; sha256: as published, or None."""

    url: str
    sha256: str | None = None
    split: str | None = None


NAMED_SOURCES: Mapping[str, tuple[Archive, ...]] = {
    # The archive of the first reference lab. No checksum of it is published: the first download's is recorded.
    "cats_vs_dogs": (Archive("https://storage.googleapis.com/mledu-datasets/cats_and_dogs_filtered.zip"),),
    # Checksums: github.com/tensorflow/datasets, tensorflow_datasets/url_checksums/horses_or_humans.txt
    "horses_or_humans": (
        Archive(
            "https://storage.googleapis.com/download.tensorflow.org/data/horse-or-human.zip",
            "e2e6f70d3d549c5dd10a57165e55af253ee66ad750403f95c0fb76bb943633a9",
            "train",
        ),
        Archive(
            "https://storage.googleapis.com/download.tensorflow.org/data/validation-horse-or-human.zip",
            "ae5fff2f4f5554791f05358108e2e05d9801b191f1896ea101402f0e7f6c32c0",
            "validation",
        ),
    ),
    # Checksum: the same place, tf_flowers.txt, where the file is named by http://download.tensorflow.org, the same bucket.
    "tf_flowers": (
        Archive(
            "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
            "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
        ),
    ),
}


def fetch_source(
    fetch: Fetch,
    destination: Path,
    *,
    seed: int,
    image_size: int,
    downloads: Path = DOWNLOADS,
    lock_file: Path = LOCK_FILE,
) -> Mapping[str, Any]:
    """Writes the source's images as class folders into the new folder `destination`; gives the facts of its marker.

    Downloads are kept in `downloads`. Raises Refused where the source is not what it should be; nothing is left at
    `destination` then.
    """
    unpacked = destination.with_name(destination.name + ".unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        target = Target(destination, unpacked, downloads, lock_file, seed, image_size)
        layout, hashes = source_of(fetch).fetch(target)
        facts = _facts(fetch.source, layout, hashes, destination)
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    mark_complete(destination, **facts)
    return facts


def shown_source(source: str) -> str:
    """The source as its marker names it: of an address what may be kept."""
    return redact(source) if "://" in source else source


def _facts(source: str, layout: Layout, hashes: dict[str, str], destination: Path) -> dict[str, Any]:
    counts = Counter(
        f"{entry.split}/{entry.class_name}" if entry.split else entry.class_name for entry in layout.entries
    )
    return {
        "source": shown_source(source),
        "sha256": hashes,
        "splits": list(layout.splits),
        "num_files": len(layout.entries),
        "num_bytes": sum((destination / entry.image_id).stat().st_size for entry in layout.entries),
        "counts": dict(sorted(counts.items())),
        "skipped": [list(pair) for pair in layout.skipped],
        "notes": list(layout.notes),
    }


@dataclass(frozen=True)
class Target:
    """Where a source is fetched to: the new folder `destination`, by way of `unpacked`; downloads are kept."""

    destination: Path
    unpacked: Path
    downloads: Path
    lock_file: Path
    seed: int
    image_size: int


@dataclass(frozen=True)
class Source:
    """A kind of source; `is_path`: it lies on this machine, where it may change unseen."""

    params: Fetch
    is_path: ClassVar[bool] = False

    def check(self, root: Path) -> None:
        """Raises Refused or OSError where it cannot be fetched, as far as is known without a network."""

    def fetch(self, target: Target) -> tuple[Layout, dict[str, str]]:
        """Its images as class folders in `target.destination`: their layout, and the sha256 of each archive."""
        raise NotImplementedError

    def count(self) -> tuple[int, int, dict[str, int]]:
        """What `count_layout` tells of it before it is fetched; Refused where only `fetch` can tell."""
        return count_layout(self._look())

    def sample(self, folder: Path, number: int, size: int, seed: int) -> Layout:
        """Images to measure on: all that it has, or about `number` where they are drawn, into the new `folder`."""
        return self._look()

    def _look(self) -> Layout:
        raise Refused(
            f"fetch.source: what {self.params.source!r} holds is known only when it is there. Run `dvc repro fetch`, "
            "then this again."
        )


class Generated(Source):
    """Drawn images, as many of each class as is asked for."""

    def fetch(self, target: Target) -> tuple[Layout, dict[str, str]]:
        num_files, _, _ = self.count()
        target.destination.mkdir(parents=True, exist_ok=True)
        require_space(target.destination, num_files * target.image_size**2 * 3)
        return self.sample(target.destination, num_files, target.image_size, target.seed), {}

    def count(self) -> tuple[int, int, dict[str, int]]:
        from frostline.images.generated.sets import TARGET_CLASSES

        return len(TARGET_CLASSES) * self.params.images_per_class, len(TARGET_CLASSES), {}

    def sample(self, folder: Path, number: int, size: int, seed: int) -> Layout:
        from frostline.images.generated.sets import TARGET_CLASSES, write_target

        write_target(folder, number // len(TARGET_CLASSES), size, seed)
        return read_layout(folder, ())


class TensorFlowSet(Source):
    """A set of TensorFlow Datasets."""

    def check(self, root: Path) -> None:
        if importlib.util.find_spec("tensorflow_datasets") is None:
            raise Refused(f"{self.params.source!r} {NO_TFDS}")

    def fetch(self, target: Target) -> tuple[Layout, dict[str, str]]:
        write_tfds(self.params.source.removeprefix("tfds:"), target.unpacked, target.downloads)
        layout = find_layout(target.unpacked)
        copy_layout(layout, target.destination, move=True)
        return layout, {}


class Download(Source):
    """An archive at an address, or the archives of a named source."""

    def check(self, root: Path) -> None:
        if self.params.source not in NAMED_SOURCES:
            check_url(self.params.source)
            refuse_secret(self.params.source)

    def fetch(self, target: Target) -> tuple[Layout, dict[str, str]]:
        source, private = self.params.source, self.params.allow_private
        hashes: dict[str, str] = {}
        layouts = []
        for number, archive in enumerate(NAMED_SOURCES.get(source) or (Archive(source, self.params.sha256),)):
            file = download(
                archive.url, target.downloads, sha256=archive.sha256, allow_private=private, lock_file=target.lock_file
            )
            hashes[redact(archive.url)] = sha256_of(file)
            layouts.append(_place(_unpack(file, target.unpacked / str(number), self.params), archive.split))
        for layout in layouts:
            copy_layout(layout, target.destination, move=True)
        whole = replace(
            read_layout(target.destination, sorted({split for each in layouts for split in each.splits})),
            skipped=tuple(skip for each in layouts for skip in each.skipped),
            notes=tuple(note for each in layouts for note in each.notes),
        )
        return whole, hashes


class Local(Source):
    """A folder or an archive of this machine."""

    is_path = True

    def check(self, root: Path) -> None:
        if not self.params.source.strip():
            raise Refused("empty; name a folder, an archive, tfds:NAME, or generated")
        path = path_of(self.params.source, root)
        if path.is_dir():
            self._layout(path)
        elif path.is_file():
            check_archive(path)
        else:
            raise Refused(self._absent())

    def fetch(self, target: Target) -> tuple[Layout, dict[str, str]]:
        path, expected = path_of(self.params.source), self.params.sha256
        if path.is_dir():
            layout = self._layout(path)
            copy_layout(layout, target.destination)
            return layout, {}
        if not path.is_file():
            raise Refused(f"fetch.source: {self._absent()}")
        actual = sha256_of(path)
        if expected and actual != expected:
            raise Refused(
                f"{path} has another content than expected.\n  expected sha256 {expected}\n  found sha256 {actual}"
            )
        layout = _unpack(path, target.unpacked, self.params)
        copy_layout(layout, target.destination, move=True)
        return layout, {path.name: actual}

    def _absent(self) -> str:
        words = ["generated", *NAMED_SOURCES]
        return (
            f"given was {self.params.source!r}, which is no folder or archive{nearest(self.params.source, words)}; "
            f"allowed: a folder, an archive (path or https URL), tfds:NAME, {', '.join(words)}"
        )

    def _look(self) -> Layout:
        path = path_of(self.params.source)
        return self._layout(path) if path.is_dir() else super()._look()

    def _layout(self, folder: Path) -> Layout:
        return find_layout(folder, follow_links=self.params.follow_links, encoding=self.params.encoding)


def source_of(fetch: Fetch) -> Source:
    """The source that `fetch.source` names."""
    if fetch.source == "generated":
        return Generated(fetch)
    if fetch.source.startswith("tfds:"):
        return TensorFlowSet(fetch)
    return Download(fetch) if fetch.source in NAMED_SOURCES or "://" in fetch.source else Local(fetch)


def count_layout(layout: Layout) -> tuple[int, int, dict[str, int]]:
    """The number of files, of classes, and of files in each split."""
    splits = {name: sum(entry.split == name for entry in layout.entries) for name in layout.splits}
    return len(layout.entries), len(layout.classes), splits


def _unpack(archive: Path, folder: Path, fetch: Fetch) -> Layout:
    extract_archive(archive, folder, max_bytes=fetch.max_extract_gb * 1e9, encoding=fetch.encoding)
    return find_layout(folder)


def _place(layout: Layout, split: str | None) -> Layout:
    """The layout of an archive that is one split of its set."""
    if split is None:
        return layout
    if layout.splits:
        raise Refused(
            f"An archive that should be the split {split!r} has splits of its own: {', '.join(layout.splits)}."
        )
    return replace(layout, splits=(split,), entries=tuple(replace(entry, split=split) for entry in layout.entries))


def write_tfds(name: str, folder: Path, cache: Path) -> None:
    """Writes a set of TensorFlow Datasets as class folders, its encoded images as they are.

    Raises Refused where the extra is not installed, or the set has no features `image` and `label`.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise Refused(f"fetch.source 'tfds:{name}' {NO_TFDS}") from None
    try:
        builder = tfds.builder(name, data_dir=str(cache / "tfds"))
    except ValueError as error:  # among them DatasetNotFoundError
        raise Refused(f"tfds:{name}: {str(error).splitlines()[0]}") from None
    features = builder.info.features
    if "image" not in features or "label" not in features:
        raise Refused(f"tfds:{name} has the features {', '.join(features)}; `image` and `label` are needed.")
    builder.download_and_prepare()
    for split in builder.info.splits:
        if split.lower() not in SPLIT_NAMES:
            continue
        dataset = builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}, shuffle_files=False)
        for number, (label, data) in enumerate(_examples(tfds.as_numpy(dataset))):
            class_folder = folder / SPLIT_NAMES[split.lower()] / features["label"].int2str(label).replace("/", "_")
            class_folder.mkdir(parents=True, exist_ok=True)
            (class_folder / f"{number:06d}{_suffix(data)}").write_bytes(data)


def _examples(dataset: Any) -> Iterator[tuple[int, bytes]]:
    for example in dataset:
        yield int(example["label"]), bytes(example["image"])


def _suffix(data: bytes) -> str:
    return ".png" if data.startswith(b"\x89PNG") else ".jpg"
