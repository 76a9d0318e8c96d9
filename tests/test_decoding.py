"""Decoding: one function, every kind of file, and a reason for every file that is no image."""

import io
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from zoo import encode, make_bomb, make_image, make_readable, make_unreadable

from frostline.images.av1 import read_coded_sizes
from frostline.images.decoding import UnreadableImage, decode_image, read_header, used_bits

READABLE, UNREADABLE = make_readable(), make_unreadable()


def resized(image: NDArray[np.uint8], size: int) -> NDArray[np.int16]:
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.int16)


def expected(kind: str, size: int) -> NDArray[np.int16]:
    pixels = make_image(0)
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
def test_every_kind_of_image_is_shown_as_it_is_meant(name: str) -> None:
    data, kind = READABLE[name]
    image = decode_image(data, 64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    # The mean tells white from grey and turned from straight; lossy files and palettes differ by some levels.
    assert np.abs(image - expected(kind, 64)).mean() < (9 if name.endswith(("gif", "palette.png")) else 3)


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_whole_image_is_refused_with_its_reason(name: str) -> None:
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
    pixels = make_image(3, 1600, 1200)
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
    files = [encode(make_image(seed, 300, 200), "JPEG") for seed in range(40)]
    alone = [decode_image(data, 64) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode_image(data, 64), files))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_the_limits_are_the_callers() -> None:
    data = encode(make_image(0, 64, 64), "PNG")
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


# --- values and depths ------------------------------------------------------------------------------------------------


def gradient() -> NDArray[np.uint8]:
    return np.tile(np.linspace(10, 250, 64).astype(np.uint8), (64, 1))


def with_tag(tiff: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a short tag."""
    import struct

    data = bytearray(tiff)
    offset = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, offset)[0]):
        at = offset + 2 + 12 * entry
        if struct.unpack_from("<H", data, at)[0] == tag:
            struct.pack_into("<H", data, at + 8, value)
    return bytes(data)


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_twelve_bits_in_sixteen_are_brought_to_light_where_params_say_so(kind: str) -> None:
    grey = gradient()
    data = cv2.imencode(kind, grey.astype(np.uint16) << 4)[1].tobytes()
    assert decode_image(data, 64).mean() < 12
    assert abs(decode_image(data, 64, bits=12).mean() - grey.mean()) < 1
    assert used_bits(data, read_header(data)) == 12
    colour = cv2.imencode(kind, np.dstack([grey.astype(np.uint16) << 4] * 3))[1].tobytes()
    assert abs(decode_image(colour, 64, bits=12).mean() - grey.mean()) < 1
    # Sixteen used bits stay what they were, and eight are none of this.
    whole = cv2.imencode(kind, grey.astype(np.uint16) * 257)[1].tobytes()
    assert abs(decode_image(whole, 64).mean() - grey.mean()) < 1
    assert used_bits(whole, read_header(whole)) == 16
    plain = cv2.imencode(kind, grey)[1].tobytes()
    assert used_bits(plain, read_header(plain)) == 0
    assert np.array_equal(decode_image(plain, 64, bits=12), decode_image(plain, 64))


@pytest.mark.parametrize("peak", [15, 255, 1023, 4095, 65535])
def test_a_depth_that_the_file_tells_is_followed(peak: int) -> None:
    grey = gradient()
    values = (grey.astype(np.uint32) * peak // 255).astype(">u2" if peak > 255 else np.uint8)
    data = f"P5 # a comment\n64 64 {peak}\n".encode() + values.tobytes()
    assert abs(decode_image(data, 64).mean() - grey.mean()) < 9 if peak == 15 else 1


@pytest.mark.parametrize("depth", [8, 10, 12])
def test_an_avif_of_any_depth_has_its_brightness(depth: int) -> None:
    grey = np.dstack([gradient()] * 3)
    pixels = grey if depth == 8 else grey.astype(np.uint16) << (depth - 8)
    data = cv2.imencode(".avif", pixels, [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 95])[1].tobytes()
    assert abs(decode_image(data, 64).mean() - grey.mean()) < 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_in_which_zero_is_white_is_turned(dtype: type) -> None:
    values = gradient().astype(dtype) * (1 if dtype is np.uint8 else 257)
    data = with_tag(cv2.imencode(".tiff", values, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes(), 262, 0)
    assert abs(decode_image(data, 64).mean() - (255 - gradient()).mean()) < 1.5


def test_floating_point_is_refused_with_a_way_out() -> None:
    data = cv2.imencode(".tiff", gradient().astype(np.float32) / 255)[1].tobytes()
    with pytest.raises(UnreadableImage, match=r"float32.*Convert it"):
        decode_image(data, 64)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_jpeg_that_was_cut_and_closed_is_not_whole(progressive: bool, share: float) -> None:
    pixels = cv2.resize(make_image(0), (320, 256), interpolation=cv2.INTER_CUBIC)
    data = encode(pixels, "JPEG", quality=90, progressive=progressive)
    assert decode_image(data, 64).shape == (64, 64, 3)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data[: int(share * len(data))] + b"\xff\xd9", 64)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_grey_image_is_whole(progressive: bool, mode: str) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (100, 75), (128, 128, 128)).convert(mode).save(file, "JPEG", progressive=progressive)
    assert decode_image(file.getvalue(), 64).shape == (64, 64, 3)


def test_an_avif_whose_header_lies_takes_no_memory_for_what_it_holds() -> None:
    """The decoder reserves memory by the coded image, whatever the file's own header says."""
    blank = np.full((6000, 6000, 3), 90, np.uint8)
    data = bytearray(cv2.imencode(".avif", blank, [cv2.IMWRITE_AVIF_SPEED, 10])[1].tobytes())
    assert list(read_coded_sizes(bytes(data))) == [(6000, 6000)]
    for found in re.finditer(b"ispe", bytes(data)):
        struct.pack_into(">II", data, found.end() + 4, 64, 64)
    code = (
        "import re, sys; from pathlib import Path; from frostline.images.decoding import UnreadableImage, decode_image\n"
        "try: decode_image(sys.stdin.buffer.read(), 32)\n"
        "except UnreadableImage as error: print(error)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=bytes(data), capture_output=True, check=True)
    said, peak = done.stdout.decode().splitlines()
    assert said == "damaged AVIF: it says 64x64 and holds 6000x6000"
    assert int(peak) < 150_000  # kB


@pytest.mark.parametrize("size", [(64, 48), (257, 1000), (16, 4097)])
@pytest.mark.parametrize("alpha", [3, 4])
def test_the_coded_size_of_an_avif_is_that_of_its_header(size: tuple[int, int], alpha: int) -> None:
    width, height = size
    by_opencv = cv2.imencode(".avif", np.full((height, width, alpha), 90, np.uint8))[1].tobytes()
    by_pillow = encode(Image.new("RGBA" if alpha == 4 else "RGB", size, (10, 90, 20)), "AVIF")
    for data in (by_opencv, by_pillow):
        assert set(read_coded_sizes(data)) == {size}
        assert (read_header(data).width, read_header(data).height) == size
