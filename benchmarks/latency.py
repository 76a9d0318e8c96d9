"""How fast the real server answers, and whether it answers as `frostline predict` does.

    python benchmarks/latency.py IMAGES [--version N] [--requests 200] [--batches 8 32] [--json FILE] [--write]

Run it in a project with a registered version; IMAGES is a folder. It starts `frostline serve`, asks it for one base64
image at a time over one kept connection (p50 and p95), then for batches (images per second), and labels the same images
with the code of `frostline predict` in this process. Prints one JSON record per line. Exits with 1 where a label differs, or
a probability by more than 1e-5.
"""

import argparse
import base64
import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from results import Lines, add_options, draw_table, keep

from frostline.cli.predict import answer_all, find_images, load_labeller
from frostline.process import count_cores

TOLERANCE = 1e-5
WARM_UP = 5
PATIENCE = 300  # seconds until the server must be ready
MAIN = "from frostline.cli import main; main()"


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[tuple[http.client.HTTPConnection, float]]:
    """A connection to `frostline serve`, and the seconds from its start to its first healthy answer."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-c", MAIN, "serve", "--port", "0", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            connection = None
            while connection is None:
                time.sleep(0.2)
                log.seek(0)
                said = log.read()
                if process.poll() is not None or time.perf_counter() > started + PATIENCE:
                    raise RuntimeError(f"the server did not start:\n{said}")
                connection = _connect(re.search(r"http://127\.0\.0\.1:(\d+)", said))
            yield connection, time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(60)


def _connect(found: re.Match[str] | None) -> http.client.HTTPConnection | None:
    if not found:
        return None
    connection = http.client.HTTPConnection("127.0.0.1", int(found.group(1)), timeout=120)
    try:
        connection.request("GET", "/ping")
        answer = connection.getresponse()
        answer.read()
    except OSError:
        return None
    return connection if answer.status == 200 else None


def ask(connection: http.client.HTTPConnection, images: Sequence[bytes]) -> list[dict[str, Any]]:
    """The server's answers to encoded images in one request."""
    rows = [{"image": base64.b64encode(image).decode()} for image in images]
    body = json.dumps({"dataframe_records": rows})
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}: {said.decode()[:500]}")
    found: list[dict[str, Any]] = json.loads(said)["predictions"]
    return found


def timed(connection: http.client.HTTPConnection, images: list[bytes], size: int, requests: int) -> list[float]:
    """Seconds of each of `requests` requests of `size` images, walking round the images; warm-up left out."""
    seconds = []
    for number in range(-WARM_UP, requests):
        batch = [images[(number * size + index) % len(images)] for index in range(size)]
        started = time.perf_counter()
        ask(connection, batch)
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def compare(served: Sequence[dict[str, Any]], predicted: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many labels differ, and the largest difference of a probability."""
    differences = [
        abs(ours["probabilities"][name] - theirs["probabilities"][name])
        for ours, theirs in zip(served, predicted, strict=True)
        for name in ours["probabilities"]
    ]
    flips = sum(ours["label"] != theirs["label"] for ours, theirs in zip(served, predicted, strict=True))
    return {"labels_that_differ": flips, "max_difference": max(differences)}


def make_table(lines: Lines) -> str:
    """What was measured, a row each."""
    rows = [
        [line["what"], ", ".join(f"{name} {value}" for name, value in line.items() if name != "what")] for line in lines
    ]
    return draw_table(["", ""], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--version", type=int, help="instead of the champion")
    parser.add_argument("--requests", type=int, default=200, help="of one image each")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    add_options(parser)
    given = parser.parse_args()
    files, _ = find_images([str(given.images)])
    labeller = load_labeller(given.version, None)
    named = list(answer_all(labeller, files[:256], tta=False, explain=None, show_progress=False))
    files = [file for file, row in zip(files[:256], named, strict=True) if "error" not in row]
    predicted = [row for row in named if "error" not in row]
    images = [Path(name).read_bytes() for name, _ in files]

    started = time.perf_counter()
    for _ in answer_all(labeller, files, tta=False, explain=None, show_progress=False):
        pass
    alone = len(files) / (time.perf_counter() - started)
    lines: Lines = []

    def say(what: str, **facts: Any) -> None:
        lines.append({"what": what, **facts})
        print(json.dumps(lines[-1]), flush=True)

    say("frostline predict, files to answers", images_per_s=round(alone, 1))

    with serving(["--version", str(given.version)] if given.version else []) as (connection, ready):
        facts = {"image_size": labeller.card.image_size, "images": len(files), "cores": count_cores()}
        size = round(float(np.mean([len(image) for image in images])))
        say("frostline serve", ready_after_s=round(ready, 1), **facts, mean_bytes=size)
        served = [row for start in range(0, len(files), 32) for row in ask(connection, images[start : start + 32])]
        same = compare(served, predicted)
        say("answers of serve against predict", **same)
        p50, p95 = np.percentile(timed(connection, images, 1, given.requests), [50, 95])
        one = {"p50_ms": round(1000 * float(p50), 1), "p95_ms": round(1000 * float(p95), 1)}
        say("one image per request", requests=given.requests, **one)
        for batch in given.batches:
            requests = max(3, given.requests // batch)
            rate = batch * requests / sum(timed(connection, images, batch, requests))
            say(f"{batch} images per request", images_per_s=round(rate, 1))
    keep("latency", lines, given, make_table)
    sys.exit(1 if same["labels_that_differ"] or same["max_difference"] > TOLERANCE else 0)


if __name__ == "__main__":
    main()
