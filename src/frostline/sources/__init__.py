"""Where pictures come from: a folder, an archive, a URL, `tfds:<name>`, a named source, or `generated` -> class folders."""

from collections import Counter
from pathlib import Path

from frostline.arrays import mark_complete
from frostline.params import Fetch
from frostline.process import Refused
from frostline.sources.folders import copy_layout, find_layout


def fetch_source(fetch: Fetch, destination: Path, *, seed: int, image_size: int) -> None:
    """Writes the source's pictures as class folders into the new folder `destination`, with their counts.

    Raises Refused where the source is not what it should be; then `destination` is not to be used.
    """
    if fetch.source == "generated":
        from frostline.generated import write_target

        write_target(destination, fetch.images_per_class, image_size, seed)
        layout, num_bytes = find_layout(destination), sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    else:
        folder = Path(fetch.source).expanduser()
        if not folder.is_dir():
            raise Refused(f"fetch.source {fetch.source!r} is not a folder.")
        layout = find_layout(folder)
        num_bytes = copy_layout(layout, destination)
    counts = Counter(f"{entry.split}/{entry.class_name}" if entry.split else entry.class_name for entry in layout.entries)
    mark_complete(
        destination,
        source=fetch.source,
        num_files=len(layout.entries),
        num_bytes=num_bytes,
        counts=dict(sorted(counts.items())),
        skipped=[list(pair) for pair in layout.skipped],
        notes=list(layout.notes),
    )
