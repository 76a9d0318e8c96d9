"""The bad zoo: every kind of image file that people really have, drawn by code. Used by several test modules."""

import io
import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def make_image(seed: int, width: int = 128, height: int = 96) -> NDArray[np.uint8]:
    """A smooth random RGB image, unlike every other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def encode(image: Image.Image | NDArray[np.uint8], kind: str, **options: object) -> bytes:
    """The image in Pillow's format `kind`."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def encode_wide(pixels: NDArray[np.generic], suffix: str) -> bytes:
    """16-bit or float pixels, which Pillow cannot write in colour."""
    return bytes(cv2.imencode(suffix, pixels)[1])


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, has correct checksums and no pixels to speak of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def make_bomb(side: int) -> bytes:
    """A small PNG of side x side grey pixels, all of them really there."""
    return encode(Image.new("L", (side, side), 128), "PNG", compress_level=9)


def turned(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image with EXIF orientation 6: to be shown turned right by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image, kind, exif=exif, **options)


def make_readable() -> dict[str, tuple[bytes, str]]:
    """Name -> (file, what a correct decoder shows): "same", "grey", "turned", "on white", "half on white", "mid"."""
    pixels = make_image(0)
    image = Image.fromarray(pixels)
    half = Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 128, np.uint8)]))
    clear = Image.fromarray(np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)]))
    others = [Image.fromarray(make_image(1)), Image.fromarray(make_image(2))]
    middle = np.full((64, 64), 32639, np.uint16)  # 127 * 257
    return {
        "jpeg.jpg": (encode(image, "JPEG", quality=95), "same"),
        "progressive.jpg": (encode(image, "JPEG", quality=95, progressive=True), "same"),
        "upper.JPG": (encode(image, "JPEG", quality=95), "same"),
        "without-suffix": (encode(image, "JPEG", quality=95), "same"),
        "trailing.jpg": (encode(image, "JPEG", quality=95) + b"garbage" * 50, "same"),
        "cmyk.jpg": (encode(image.convert("CMYK"), "JPEG", quality=95), "same"),
        "grey.jpg": (encode(image.convert("L"), "JPEG", quality=95), "grey"),
        "png.png": (encode(image, "PNG"), "same"),
        "png-named.jpg": (encode(image, "PNG"), "same"),
        "jpeg-named.png": (encode(image, "JPEG", quality=95), "same"),
        "palette.png": (encode(image.quantize(256), "PNG"), "same"),
        "grey.png": (encode(image.convert("L"), "PNG"), "grey"),
        "grey-alpha.png": (encode(image.convert("LA"), "PNG"), "grey"),
        "half-transparent.png": (encode(half, "PNG"), "half on white"),
        "transparent.png": (encode(clear, "PNG"), "on white"),
        "transparent.webp": (encode(clear, "WEBP", lossless=True, exact=True), "on white"),
        "half-transparent.webp": (encode(half, "WEBP", lossless=True), "half on white"),
        "webp.webp": (encode(image, "WEBP", quality=95), "same"),
        "lossless.webp": (encode(image, "WEBP", lossless=True), "same"),
        "animated.webp": (encode(image, "WEBP", save_all=True, append_images=others, quality=95), "same"),
        "animated.gif": (encode(image, "GIF", save_all=True, append_images=others), "same"),
        "animated.png": (encode(image, "PNG", save_all=True, append_images=others), "same"),
        "gif.gif": (encode(image, "GIF"), "same"),
        "bmp.bmp": (encode(image, "BMP"), "same"),
        "tiff.tiff": (encode(image, "TIFF"), "same"),
        "lzw.tif": (encode(image, "TIFF", compression="tiff_lzw"), "same"),
        "avif.avif": (encode(image, "AVIF", quality=95), "same"),
        "ppm.ppm": (encode(image, "PPM"), "same"),
        "turned.jpg": (turned(image, "JPEG", quality=95), "turned"),
        "turned.png": (turned(image, "PNG"), "turned"),
        "turned.webp": (turned(image, "WEBP", quality=95), "turned"),
        "turned.tiff": (turned(image, "TIFF"), "turned"),
        "turned-alpha.png": (turned(image.convert("RGBA"), "PNG"), "turned"),
        "turned-alpha.webp": (turned(image.convert("RGBA"), "WEBP", lossless=True), "turned"),
        "16-bit-grey.png": (encode_wide(middle, ".png"), "mid"),
        "16-bit.png": (encode_wide(np.dstack([middle] * 3), ".png"), "mid"),
        "16-bit-alpha.png": (encode_wide(np.dstack([middle] * 3 + [np.full_like(middle, 65535)]), ".png"), "mid"),
        "16-bit.tiff": (encode_wide(np.dstack([middle] * 3), ".tiff"), "mid"),
    }


def make_unreadable() -> dict[str, tuple[bytes, str]]:
    """Name -> (file, a word of the reason that it must be refused with)."""
    pixels = make_image(0)
    jpeg, png = encode(pixels, "JPEG"), encode(pixels, "PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "nine-tenths.jpg": (jpeg[: len(jpeg) * 9 // 10], "truncated"),
        "no-end.jpg": (jpeg[:-2], "truncated"),
        "header-only.jpg": (jpeg[:30], "truncated"),
        "two-bytes.jpg": (jpeg[:2], "truncated"),
        "progressive-half.jpg": (encode(pixels, "JPEG", progressive=True)[:1500], "truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "crc.png": (bytes(flipped), "damaged"),
        "half.webp": (encode(pixels, "WEBP")[:1000], "truncated"),
        "half.gif": (encode(pixels, "GIF")[:2000], "truncated"),
        "half.bmp": (encode(pixels, "BMP")[:5000], "truncated"),
        "half.tiff": (encode(pixels, "TIFF")[:5000], "truncated"),
        "half.avif": (encode(pixels, "AVIF")[:600], "truncated"),
        "empty.jpg": (b"", "empty file"),
        "zeros.jpg": (bytes(5000), "zero bytes"),
        "text.jpg": ("Grüße, kein Bild\n".encode() * 100, "text"),
        "page.jpg": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML"),
        "drawing.jpg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        "document.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        "phone.heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        "noise.jpg": (np.random.default_rng(0).bytes(5000), "not a known image"),
        "jpeg-2000.jp2": (encode(pixels, "JPEG2000"), "JPEG 2000"),
        "float.tiff": (encode_wide(np.full((64, 64), 0.5, np.float32), ".tiff"), "float32"),
        "100-megapixel.png": (make_bomb(10_000), "too large"),
        "60000x60000.png": (png_header(60_000, 60_000), "too large"),
        "one-pixel.png": (encode(make_image(0, 1, 1), "PNG"), "too small"),
        "1x5000.png": (encode(make_image(0, 1, 5000), "PNG"), "too small"),
        "20000x2.png": (encode(make_image(0, 20000, 2), "PNG"), "too small"),
    }
