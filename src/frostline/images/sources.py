"""Where pictures come from: a folder, an archive, a URL, `tfds:<name>`, a named source, or `generated` -> class folders."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frostline.errors import Refused, redact
from frostline.files import mark_complete, path_of, sha256_of
from frostline.images.archives import extract_archive
from frostline.images.downloads import LOCK_FILE, download
from frostline.images.folders import Layout, copy_layout, find_layout, read_layout, require_space
from frostline.images.names import SPLIT_NAMES
from frostline.params import Fetch

DOWNLOADS = Path(".frostline/downloads")


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
    """Writes the source's pictures as class folders into the new folder `destination`; gives the facts of its marker.

    Downloads are kept in `downloads`. Raises Refused where the source is not what it should be; nothing is left at
    `destination` then.
    """
    unpacked = destination.with_name(destination.name + ".unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        facts = _fetch(fetch, destination, unpacked, seed, image_size, downloads, lock_file)
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    mark_complete(destination, **facts)
    return facts


def _fetch(
    fetch: Fetch, destination: Path, unpacked: Path, seed: int, image_size: int, downloads: Path, lock_file: Path
) -> dict[str, Any]:
    source = fetch.source
    hashes: dict[str, str] = {}
    if source == "generated":
        from frostline.images.generated.sets import TARGET_CLASSES, write_target

        destination.mkdir(parents=True, exist_ok=True)
        require_space(destination, len(TARGET_CLASSES) * fetch.images_per_class * image_size**2 * 3)
        write_target(destination, fetch.images_per_class, image_size, seed)
        layout = read_layout(destination, ())
    elif source.startswith("tfds:"):
        write_tfds(source.removeprefix("tfds:"), unpacked, downloads)
        layout = find_layout(unpacked)
        copy_layout(layout, destination, move=True)
    elif source in NAMED_SOURCES or "://" in source:
        archives = NAMED_SOURCES.get(source) or (Archive(source, fetch.sha256),)
        layouts = []
        for number, archive in enumerate(archives):
            file = download(
                archive.url, downloads, sha256=archive.sha256, allow_private=fetch.allow_private, lock_file=lock_file
            )
            hashes[redact(archive.url)] = sha256_of(file)
            extract_archive(file, unpacked / str(number), max_bytes=fetch.max_extract_gb * 1e9, encoding=fetch.encoding)
            layouts.append(_place(find_layout(unpacked / str(number)), archive.split))
        for layout in layouts:
            copy_layout(layout, destination, move=True)
        splits = {split for each in layouts for split in each.splits}
        layout = replace(
            read_layout(destination, sorted(splits)),
            skipped=tuple(skip for each in layouts for skip in each.skipped),
            notes=tuple(note for each in layouts for note in each.notes),
        )
    else:
        layout, hashes = _fetch_path(path_of(source), fetch, destination, unpacked)
    counts = Counter(
        f"{entry.split}/{entry.class_name}" if entry.split else entry.class_name for entry in layout.entries
    )
    return {
        "source": redact(source) if "://" in source else source,
        "sha256": hashes,
        "splits": list(layout.splits),
        "num_files": len(layout.entries),
        "num_bytes": sum((destination / entry.image_id).stat().st_size for entry in layout.entries),
        "counts": dict(sorted(counts.items())),
        "skipped": [list(pair) for pair in layout.skipped],
        "notes": list(layout.notes),
    }


def _fetch_path(path: Path, fetch: Fetch, destination: Path, unpacked: Path) -> tuple[Layout, dict[str, str]]:
    if path.is_dir():
        layout = find_layout(path, follow_links=fetch.follow_links, encoding=fetch.encoding)
        copy_layout(layout, destination)
        return layout, {}
    if not path.is_file():
        words = ", ".join(NAMED_SOURCES)
        raise Refused(
            f"fetch.source {fetch.source!r} is neither a folder nor an archive; allowed: a folder, an archive (path or https URL), "
            f"tfds:NAME, {words}, generated."
        )
    actual = sha256_of(path)
    if fetch.sha256 and actual != fetch.sha256:
        raise Refused(
            f"{path} has another content than expected.\n  expected sha256 {fetch.sha256}\n  found sha256 {actual}"
        )
    extract_archive(path, unpacked, max_bytes=fetch.max_extract_gb * 1e9, encoding=fetch.encoding)
    layout = find_layout(unpacked)
    copy_layout(layout, destination, move=True)
    return layout, {path.name: actual}


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
    """Writes a set of TensorFlow Datasets as class folders, its encoded pictures as they are.

    Raises Refused where the extra is not installed, or the set has no features `image` and `label`.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise Refused(
            f"fetch.source 'tfds:{name}' needs the extra `tfds`, which is not installed. Run `make env EXTRA=tfds`."
        ) from None
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
