"""The parts before the search, each beside the plain way of doing it, in one run: decoding, views, frozen prefix.

    python benchmarks/prefix.py [--shared ../shared] [--base MobileNetV2] [--size 160] [--images 256] [--json FILE] [--write]

decode: `decode_shards` (header, decoding, hashes, fingerprints, shards on disk) beside a bare loop of `cv2.imdecode` and
`cv2.resize` on one core, times the cores, and the time of each of its steps; INTER_AREA is the one that skips no pixels.
augment: `save_views` (files on disk) beside a bare loop of Albumentations' `Compose`, times the cores. Both write some
gigabytes. prefix: `Extractor` with the maps of four cuts and every cut pooled, beside the four cuts unfolded and in one
large batch, and beside `model.predict` on the whole base. The ways of a part take turns; the median of the rounds counts.
One JSON line per way: images per second of wall time and of processor time, and the ratio to the plain way.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from results import Lines, add_options, draw_table, keep
from workloads import TRANSFORMS

# Heavy libraries are imported inside functions: the processes that decode and render import this file again.
ROUNDS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    arguments.add_argument("--base", default="MobileNetV2", choices=["MobileNetV2", "InceptionV3"])
    arguments.add_argument("--size", type=int, default=160)
    arguments.add_argument("--images", type=int, default=256, help="for the prefix")
    arguments.add_argument("--parts", nargs="+", default=["decode", "augment", "prefix"])
    add_options(arguments)
    given = arguments.parse_args()
    measures: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]]
    measures = {"decode": measure_decode, "augment": measure_augment, "prefix": measure_prefix}
    lines: Lines = []
    with tempfile.TemporaryDirectory(prefix="prefix-") as work:
        for part in given.parts:
            for line in measures[part](given, Path(work) / "out"):
                lines.append({"part": part, **line})
                print(json.dumps(lines[-1]), flush=True)
    keep("-".join(["prefix", *given.parts]), lines, given, make_table)


def make_table(lines: Lines) -> str:
    """A row for each way: images or views per second of wall time and of processor time."""
    ways = [line for line in lines if "per_second" in line]
    rows = [[line["way"], line["per_second"], line["per_processor_second"], line["of_plain"]] for line in ways]
    return draw_table(["", "per second", "per processor second", "of the plain way"], rows)


def compare(ways: dict[str, tuple[Callable[[], int], int]], plain: str, out: Path) -> list[dict[str, Any]]:
    """A line per way. ways: name -> (a call that returns the number of images, cores that its rate is multiplied by).

    out: where a way may write; removed after each call.
    """
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + ROUNDS):  # the first compiles and fills caches
        for name, (call, _) in ways.items():
            before, started = processor_seconds(), time.perf_counter()
            count = call()
            walls[name].append(count / (time.perf_counter() - started))
            cpus[name].append(count / (processor_seconds() - before))
            shutil.rmtree(out, ignore_errors=True)
    walls, cpus = ({name: values[1:] for name, values in rates.items()} for rates in (walls, cpus))
    rates = {name: statistics.median(walls[name]) * cores for name, (_, cores) in ways.items()}
    return [
        {
            "way": name,
            "per_second": round(rates[name], 1),
            "per_processor_second": round(statistics.median(cpus[name]), 1),
            "of_plain": round(rates[name] / rates[plain], 3),
        }
        for name in ways
    ]


def processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def list_files(given: argparse.Namespace, count: int) -> list[Any]:
    from frostline.images.folders import find_layout

    entries = find_layout(given.shared / "data" / "cats_vs_dogs").entries
    return [entries[place] for place in np.linspace(0, len(entries) - 1, min(count, len(entries))).astype(int)]


def load_images(given: argparse.Namespace, count: int) -> np.ndarray:
    from frostline.images.decoding import decode_image

    files = [Path(entry.path) for entry in list_files(given, count)]
    return np.stack([decode_image(file.read_bytes(), given.size) for file in files])


def measure_decode(given: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    import cv2

    from frostline.images.shards import decode_shards
    from frostline.params import Prepare
    from frostline.process import count_cores

    cores = count_cores()
    # Every file several times: a second of starting processes shall not decide.
    entries = 4 * list_files(given, 3000)
    cv2.setNumThreads(1)

    def bare(method: int) -> Callable[[], int]:
        def call() -> int:
            for entry in entries:
                image = cv2.imdecode(np.frombuffer(Path(entry.path).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
                cv2.resize(image, (given.size, given.size), interpolation=method)
            return len(entries)

        return call

    def ours() -> int:
        decode_shards(entries, Prepare(), given.size, out, cores)
        return len(entries)

    linear, area = (f"bare loop, {name}, x {cores} cores" for name in ("INTER_LINEAR", "INTER_AREA"))
    ways = {linear: (bare(cv2.INTER_LINEAR), cores), area: (bare(cv2.INTER_AREA), cores), "frostline": (ours, 1)}
    return [*compare(ways, linear, out), profile_decode(entries[:2000], given.size, out)]


def profile_decode(entries: list[Any], size: int, out: Path) -> dict[str, Any]:
    """Microseconds per image of what `decode_shards` does, on one core."""
    from frostline.arrays import save_array
    from frostline.images.decoding import check_header, decode_checked, read_header
    from frostline.images.shards import make_fingerprints
    from frostline.process import keep_freed_memory

    keep_freed_memory()
    steps: dict[str, float] = defaultdict(float)

    def measure(step: str, function: Callable[[Any], Any], things: list[Any]) -> list[Any]:
        started = time.perf_counter()
        results = [function(thing) for thing in things]
        steps[step] += 1e6 * (time.perf_counter() - started) / len(entries)
        return results

    def check(data: bytes) -> Any:
        header = read_header(data)
        check_header(header, min_side=16, max_megapixels=50)
        return header

    def save(images: list[Any]) -> None:
        save_array(out / "images.npy", [image[None] for image in images], (len(images), size, size, 3), np.uint8)

    for start in range(0, len(entries), 200):
        data = measure("reading", lambda entry: Path(entry.path).read_bytes(), entries[start : start + 200])
        headers = measure("header", check, data)
        pairs = list(zip(data, headers, strict=True))
        images = measure("decoding, resizing", lambda pair: decode_checked(pair[0], pair[1], size, "squash"), pairs)
        measure("fingerprints", make_fingerprints, images)
        measure("sha256 of the file", lambda one: hashlib.sha256(one).hexdigest(), data)
        measure("sha256 of the pixels", lambda image: hashlib.sha256(image.data).hexdigest(), images)
        measure("writing, flushed", save, [images])
    return {
        "way": "frostline, where the time goes",
        "microseconds": {step: round(one, 1) for step, one in steps.items()},
    }


def measure_augment(given: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    import albumentations as A
    import cv2

    from frostline.arrays import digest_rows, save_array
    from frostline.images.transforms import build_transforms
    from frostline.images.views import Drawing, make_views, save_views
    from frostline.process import count_cores

    images = load_images(given, 1024)
    file = out.parent / "images.npy"
    np.save(file, images)
    cv2.setNumThreads(1)
    compose = A.Compose([getattr(A, name)(**values) for entry in TRANSFORMS for name, values in entry.items()])
    pipeline, digests = build_transforms(TRANSFORMS, given.size), digest_rows(images)
    cores, num_views = count_cores(), 57

    def bare() -> int:
        for image in images:
            compose(image=np.array(image))
        return len(images)

    def alone() -> int:
        return len(make_views(images, digests, pipeline, view=1, seed=0))

    def ours() -> int:
        with redirect_stdout(io.StringIO()):
            list(save_views(Drawing((file,), digests, TRANSFORMS, 0), out, num_views=num_views, workers=cores))
        return len(images) * (num_views - 1)

    def write() -> int:
        out.mkdir()
        for view in range(num_views - 1):
            save_array(out / f"{view}.npy", [images], images.shape, np.uint8)
        return len(images) * (num_views - 1)

    name = f"bare loop x {cores} cores"
    return compare(
        {
            name: (bare, cores),
            f"frostline, one process x {cores} cores": (alone, cores),
            "frostline: processes started, files flushed": (ours, 1),
            "nothing drawn, the same files written and flushed": (write, 1),
        },
        name,
        out,
    )


def measure_prefix(given: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    import keras

    from frostline.bases.base import build_base
    from frostline.bases.cuts import scale_pixels
    from frostline.bases.extraction import Extractor
    from frostline.devices import compile_frozen

    files = {
        "MobileNetV2": "mobilenet_v2_100/mobilenet_v2_100_notop.weights.h5",
        "InceptionV3": "inception_v3/inception_v3_mixed8.weights.h5",
    }
    weights = given.shared / "weights" / files[given.base]
    output = None if given.base == "MobileNetV2" else "mixed8"
    base = build_base(given.base, given.size, weights=weights, output_layer=output)
    images = load_images(given, given.images)
    depths, batch = [0, 1, 2, 3], 64
    extractor = Extractor(base, depths, batch)
    pixels = keras.Input(images.shape[1:], dtype="uint8")
    cuts = [base.model.operations[base.cuts[depth].index].output for depth in depths]
    plain = keras.Model(base.model.inputs, cuts)(scale_pixels(pixels, base.scaling))
    unfolded = compile_frozen(keras.Model(pixels, plain))
    whole = keras.Model(pixels, base.model(scale_pixels(pixels, base.scaling)))
    folded = extractor._forward

    def in_batches(forward: Callable[[Any], Any]) -> Callable[[], int]:
        def call() -> int:
            for start in range(0, len(images), batch):
                for output in forward(keras.ops.convert_to_tensor(images[start : start + batch])):
                    keras.ops.convert_to_numpy(output)
            return len(images)

        return call

    def predict(size: int) -> Callable[[], int]:
        return lambda: len(whole.predict(images, batch_size=size, verbose=0))

    name = f"model.predict, whole base, batch {batch}"
    return compare(
        {
            name: (predict(batch), 1),
            "model.predict, whole base, batch 8": (predict(8), 1),
            f"four cuts, unfolded, batch {batch}": (in_batches(unfolded), 1),
            f"four cuts, folded, batch {batch}": (in_batches(folded), 1),
            "frostline: four cuts, folded, in batches as the device wants": (
                lambda: sum(len(outputs[0]) for outputs in extractor.run(images)),
                1,
            ),
        },
        name,
        out,
    )


if __name__ == "__main__":
    main()
