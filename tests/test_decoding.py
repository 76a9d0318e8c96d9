"""Decoding: one function, every kind of file, and a reason for every file that is no picture."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from zoo import encode, make_bomb, make_picture, make_readable, make_unreadable

from frostline.images.decoding import UnreadableImage, decode_image, read_header

READABLE, UNREADABLE = make_readable(), make_unreadable()


def resized(image: NDArray[np.uint8], size: int) -> NDArray[np.int16]:
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.int16)


def expected(kind: str, size: int) -> NDArray[np.int16]:
    pixels = make_picture(0)
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    shown: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "same": lambda: pixels,
        "grey": lambda: grey,
        "turned": lambda: np.ascontiguousarray(np.rot90(pixels, -1)),
        "on white": lambda: np.full_like(pixels, 255),
        "half on white": lambda: ((pixels.astype(np.uint16) * 128 + 255 * 127) // 255).astype(np.uint8),
        "mid": lambda: np.full((64, 64, 3), 127, np.uint8),
    }
    return resized(shown[kind](), size)


@pytest.mark.parametrize("name", READABLE)
def test_every_kind_of_picture_is_shown_as_it_is_meant(name: str) -> None:
    data, kind = READABLE[name]
    image = decode_image(data, 64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    # The mean tells white from grey and turned from straight; lossy files and palettes differ by some levels.
    assert np.abs(image - expected(kind, 64)).mean() < (9 if name.endswith(("gif", "palette.png")) else 3)


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_whole_picture_is_refused_with_its_reason(name: str) -> None:
    data, word = UNREADABLE[name]
    with pytest.raises(UnreadableImage, match=word) as refusal:
        decode_image(data, 64)
    assert refusal.value.reason == str(refusal.value)


@pytest.mark.parametrize(
    "name", ["jpeg.jpg", "png.png", "webp.webp", "gif.gif", "bmp.bmp", "tiff.tiff", "avif.avif", "turned.jpg"]
)
def test_a_file_cut_anywhere_is_refused_or_decoded_but_never_an_error_of_another_kind(name: str) -> None:
    data = READABLE[name][0]
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            decode_image(data[:length], 32)
        except UnreadableImage:
            continue
        assert length > len(data) * 0.9, f"{name} cut to {length} of {len(data)} bytes was accepted"


def test_damaged_bytes_never_raise_anything_but_unreadable() -> None:
    rng = np.random.default_rng(1)
    for data, _ in READABLE.values():
        for _ in range(8):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(0, min(len(data), 400), 5)] = rng.integers(0, 256, 5, dtype=np.uint8)
            try:
                image = decode_image(damaged.tobytes(), 32)
            except UnreadableImage:
                continue
            assert image.shape == (32, 32, 3)


def test_headers_tell_size_and_kind_without_decoding() -> None:
    for name, (data, _) in READABLE.items():
        header = read_header(data)
        # TIFF states its size after turning, all others before.
        assert (header.width, header.height) in {(128, 96), (96, 128), (64, 64)}, name
        assert header.animated == ("animated" in name), name


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    code = (
        "import resource, sys\n"
        "from frostline.images.decoding import UnreadableImage, decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    decode_image(sys.stdin.buffer.read(), 64)\n"
        "except UnreadableImage as error:\n    print(error.reason)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=make_bomb(12_000), capture_output=True, check=True)
    reason, grown = done.stdout.decode().splitlines()
    assert "144" in reason or "12000x12000" in reason
    assert int(grown) < 30_000 * (1024 if sys.platform == "darwin" else 1)  # KiB; 144 megapixels would be 432 MB


def test_a_large_jpeg_is_decoded_at_a_reduced_scale_to_nearly_the_same_pixels() -> None:
    pixels = make_picture(3, 1600, 1200)
    image = decode_image(encode(pixels, "JPEG", quality=95), 96)
    reference = cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(image.astype(int) - reference).mean() < 2


def test_resizing_squashes_crops_or_pads() -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, :32] = (255, 0, 0)  # a red quarter on the left
    pixels[:, 96:] = (0, 0, 255)
    data = encode(pixels, "PNG")
    squashed, cropped, padded = (decode_image(data, 32, how) for how in ("squash", "crop", "pad"))
    assert squashed[16, 2, 0] > 250 and squashed[16, 29, 2] > 250
    assert cropped[16, 2].max() < 5 and cropped[16, 29].max() < 5
    assert padded[16, 2, 0] > 250 and padded[2].max() == 0 and padded[-2].max() == 0


def test_decoding_is_the_same_on_many_threads() -> None:
    files = [encode(make_picture(seed, 300, 200), "JPEG") for seed in range(40)]
    alone = [decode_image(data, 64) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode_image(data, 64), files))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_the_limits_are_the_callers() -> None:
    data = encode(make_picture(0, 64, 64), "PNG")
    assert decode_image(data, 32, min_side=64).shape == (32, 32, 3)
    with pytest.raises(UnreadableImage, match="at least 65"):
        decode_image(data, 32, min_side=65)
    with pytest.raises(UnreadableImage, match=r"0\.004 megapixels"):
        decode_image(data, 32, max_megapixels=0.004)


def test_real_photographs_decode(shared: Path) -> None:
    files = sorted((shared / "data/cats_vs_dogs/train/cats").glob("*.jpg"))[:100]
    for file in files:
        image = decode_image(file.read_bytes(), 96)
        reference = cv2.resize(cv2.imread(str(file), cv2.IMREAD_COLOR_RGB), (96, 96), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - reference).mean() < 8
