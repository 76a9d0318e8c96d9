"""Encoded images with something wrong: bits flipped, parts cut, moved, repeated or overwritten, headers that lie."""

import json
import random
import re
import resource
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zoo import make_readable

from frostline.images.decoding import UnreadableImage, decode_image

SIZE = 48
LARGEST = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def flip_bits(data: bytes, generator: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8, 64))):
        found[generator.randrange(len(found))] ^= 1 << generator.randrange(8)
    return bytes(found)


def cut(data: bytes, generator: random.Random) -> bytes:
    """Its end is missing; of a JPEG now and then with an end marker behind what is left."""
    left = data[: generator.randrange(1, len(data))]
    return left + b"\xff\xd9" if data[:2] == b"\xff\xd8" and generator.random() < 0.5 else left


def swap_parts(data: bytes, generator: random.Random) -> bytes:
    one, two, three = sorted(generator.randrange(len(data) + 1) for _ in range(3))
    return data[:one] + data[two:three] + data[one:two] + data[three:]


def drop_part(data: bytes, generator: random.Random) -> bytes:
    start = generator.randrange(len(data))
    return data[:start] + data[start + generator.choice((1, 2, 4, 16, 256)) :]


def repeat_part(data: bytes, generator: random.Random) -> bytes:
    start, stop = sorted(generator.randrange(len(data) + 1) for _ in range(2))
    return data[:stop] + data[start:stop] * generator.choice((1, 3)) + data[stop:]


def overwrite(data: bytes, generator: random.Random) -> bytes:
    start, length = generator.randrange(len(data)), generator.choice((1, 4, 64, 512))
    return (
        data[:start]
        + generator.choice((bytes(length), b"\xff" * length, generator.randbytes(length)))
        + data[start + length :]
    )


def lie_in_header(data: bytes, generator: random.Random) -> bytes:
    """A number among the first bytes is another."""
    kind, length = generator.choice((("<H", 2), (">H", 2), ("<I", 4), (">I", 4)))
    start = generator.randrange(max(1, min(len(data), 200) - length))
    number = generator.choice(LARGEST) & (256**length - 1)
    return data[:start] + struct.pack(kind, number) + data[start + length :]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bits,
    cut,
    swap_parts,
    drop_part,
    repeat_part,
    overwrite,
    lie_in_header,
)


@dataclass(frozen=True)
class Case:
    """One mutated image: which file, what was done to it, and by which draw."""

    name: str
    mutation: str
    seed: int


def make_case(files: Mapping[str, bytes], number: int) -> tuple[Case, bytes]:
    """The case of a number, always the same; files and mutations take turns."""
    name = list(files)[number % len(files)]
    mutate = MUTATIONS[number // len(files) % len(MUTATIONS)]
    return Case(name, mutate.__name__, number), mutate(files[name], random.Random(number))


def is_part_grey(found: NDArray[np.uint8], whole: NDArray[np.uint8]) -> bool:
    """Is the lower end of one colour, where that of the whole image is not? It is what a decoder fills a cut image with."""
    low, was = found[-SIZE // 8 :].astype(float), whole[-SIZE // 8 :].astype(float)
    return bool(np.ptp(low, axis=(0, 1)).max() < 2 and np.ptp(was, axis=(0, 1)).max() > 10)


def judge(data: bytes, whole: NDArray[np.uint8] | None) -> str:
    """`refused`, `read`, or what must not be: `part grey`, `crash: ...`. whole: the image before it was cut."""
    try:
        found = decode_image(data, SIZE)
    except UnreadableImage:
        return "refused"
    except Exception as error:  # whatever else comes out ends a run on a folder of a million images
        return f"crash: {type(error).__name__}: {error}"
    if found.shape != (SIZE, SIZE, 3) or found.dtype != np.uint8:
        return f"crash: {found.dtype} {found.shape}"
    return "part grey" if whole is not None and is_part_grey(found, whole) else "read"


def fuzz(first: int, number: int) -> tuple[Counter[str], list[tuple[Case, str]]]:
    """How often each judgement fell, and the cases with what must not be."""
    files = {name: data for name, (data, _) in make_readable().items()}
    wholes = {name: decode_image(data, SIZE) for name, data in files.items()}
    counts: Counter[str] = Counter()
    wrong = []
    for each in range(first, first + number):
        case, data = make_case(files, each)
        said = judge(data, wholes[case.name] if case.mutation == "cut" else None)
        counts[said.split(":")[0]] += 1
        if said not in ("refused", "read"):
            wrong.append((case, said))
    return counts, wrong


def peak_bytes() -> int:
    """The most memory that this process has held."""
    try:  # since it began its own program; the other way counts what its parent held, too
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_fuzz(first: int, number: int) -> dict[str, Any]:
    """`fuzz` in a process of its own, which a crash of a decoder's would end: counts, wrong cases and peak in bytes."""
    command = [sys.executable, __file__, str(first), str(number)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    counts, wrong = fuzz(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"counts": counts, "wrong": [[str(case), said] for case, said in wrong], "peak": peak_bytes()}))
