"""Frostline on whatever device Keras sees, in parts: its peak, the frozen prefix, a whole search.

    python benchmarks/gpu.py [--parts peak prefix search] [--shared ../shared] [--backend jax] [--workload W1] [--json FILE] [--write]

peak: FLOP/s of a product of two square matrices. prefix: images/s of the workload's base with all cuts pooled and the maps of
its depths, by precision and batch: the network alone, on images that lie on the device; and from an array in memory to arrays
in memory, as `extract` calls it. search: the whole workload of search.py. docs/gpu.md has the table.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import Lines, add_options, draw_table, keep

if TYPE_CHECKING:
    from workloads import Sources

SIZE = 8192  # of the matrices whose product shows the peak
BATCHES = (64, 256, 1024)
IMAGES = 4096  # of the prefix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {"peak": measure_peak, "prefix": measure_prefix, "search": measure_search}
    parser.add_argument("--parts", nargs="+", choices=list(measures), default=list(measures))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--backend", choices=["tensorflow", "jax"], default=None, help="else $KERAS_BACKEND")
    parser.add_argument("--workload", choices=["W1", "W2", "W3"], default="W1")
    parser.add_argument("--small", action="store_true", help="a hundredth of the work, to try the script")
    add_options(parser)
    given = parser.parse_args()
    if given.backend:
        os.environ["KERAS_BACKEND"] = given.backend
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from workloads import WORKLOADS, Sources

    from frostline.devices import BACKEND, describe_device, share_memory

    share_memory()
    work = WORKLOADS[given.workload]
    if given.small:
        work = replace(work, per_class=20, val_per_class=20, num_trials=4, epochs=2, views=2)
    sources = Sources(work, given.shared)
    lines: Lines = []
    for part in given.parts:
        for line in measures[part](sources, given.small):
            lines.append({"part": part, "device": describe_device(), "backend": BACKEND, **line})
            print(json.dumps(lines[-1], default=float), flush=True)
    keep("gpu", lines, given, make_table)


def make_table(lines: Lines) -> str:
    """A row for each thing that was measured."""
    return draw_table(["", "", ""], [[line["part"], line["what"], line["found"]] for line in lines])


def time_of(call: Callable[[], Any], rounds: int = 10) -> float:
    """Median seconds of a call, after one."""
    call()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def measure_peak(sources: "Sources", small: bool) -> Iterator[dict[str, Any]]:
    from frostline.devices import compile_function, keras, ops

    size = SIZE // 16 if small else SIZE
    for kind in ("bfloat16", "float16", "float32"):
        a, b = (ops.cast(keras.random.normal((size, size), seed=seed), kind) for seed in (0, 1))
        # One number comes back: the clock stops when the product is there.
        run = compile_function(lambda a, b: ops.sum(ops.matmul(a, b)[:1, :8]))
        flops = 2 * size**3 / time_of(lambda run=run, a=a, b=b: float(run(a, b)))  # type: ignore[misc]
        yield {"what": f"product of matrices, {kind}", "flops": flops, "found": f"{flops / 1e12:.0f} TFLOP/s"}


def measure_prefix(sources: "Sources", small: bool) -> Iterator[dict[str, Any]]:
    import numpy as np

    from frostline.bases.extraction import Extractor
    from frostline.devices import ops

    work, flops = sources.work, sources.costs().total
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES // 100 if small else IMAGES, *(work.image_size,) * 2, 3)).astype(np.uint8)
    for kind in ("float32", "float16", "bfloat16"):
        for batch in BATCHES[:1] if small else BATCHES:
            extractor = Extractor(sources.base, [depth for depth in work.depths if depth], batch, kind)
            batch = min(batch, len(images))
            given = ops.convert_to_tensor(images[:batch])

            def alone(extractor: Extractor = extractor, given: Any = given) -> None:
                float(extractor._forward(given)[-1][0, 0])

            started = time.perf_counter()
            alone()
            compiled = time.perf_counter() - started
            network = batch / time_of(alone)
            through = len(images) / time_of(lambda extractor=extractor: [None for _ in extractor.run(images)], 3)  # type: ignore[misc]
            yield {
                "what": f"{kind}, batches of {batch}",
                "compile_seconds": compiled,
                "images_per_second": network,
                "through_per_second": through,
                "flops_per_second": network * flops,
                "found": f"network alone {network:.0f} images/s, {network * flops / 1e12:.1f} TFLOP/s; memory to memory "
                f"{through:.0f} images/s; {compiled:.0f} s to compile",
            }


def measure_search(sources: "Sources", small: bool) -> Iterator[dict[str, Any]]:
    """The workload once, whole."""
    from side_frostline import run_frostline
    from workloads import draw_trials

    trials = draw_trials(sources.work, 7)
    with tempfile.TemporaryDirectory() as scratch:
        rules = argparse.Namespace(seed=7, pruning="none", patience=None, no_probe=False, work=Path(scratch))
        line = run_frostline(sources, trials, rules)
    work, costs, phases = sources.work, sources.costs(), line["phases"]
    num, val, num_prefix = len(sources.train), len(sources.val), sources.num_prefix
    study_flops = costs.ours(trials, line["epochs"], num, val, num_prefix) - num_prefix * costs.total
    computing = phases["train"] + phases["validate"]
    yield {
        "what": f"{work.name}: {len(trials)} trials, {num} + {val} images, {work.epochs} epochs, {work.views} views",
        "seconds": line["seconds"],
        "prefix_images_per_second": num_prefix / phases["prefix"],
        "trials_per_minute": line["trials_per_minute"],
        "training_flops_per_second": study_flops / computing if computing else None,
        "phases": phases,
        "best_val_accuracy": line["best_val_accuracy"],
        "mean_val_accuracy": line["mean_val_accuracy"],
        "records": line["records"],
        "found": f"{line['seconds']:.0f} s, {line['trials_per_minute']:.1f} trials/minute; "
        + ", ".join(f"{name} {taken:.1f}" for name, taken in phases.items()),
    }


if __name__ == "__main__":
    main()
