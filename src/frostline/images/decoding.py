"""Encoded images -> uint8 RGB arrays: the one decoder of prepare, evaluate, predict and serve.

What the decoder reads is decided by content, not by name. Everything is measured on the header before a pixel is
decoded, so that a small file cannot ask for gigabytes.
"""

import re
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.images.av1 import read_coded_sizes

# The formats read, by their first bytes.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", "AVIF", "PNM")

# What else turns up under the name of an image: a pattern at the beginning of the file, and the word for it.
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the image; run `git lfs pull`"),
    (rb"%PDF-", "a PDF document"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000, which is not read; convert it to PNG"),
    (rb"....ftyp(heic|heix|mif1|hevc)", "HEIC, which is not read; convert it to JPEG"),
    (rb"8BPS", "a Photoshop document"),
    (rb"(?i)\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", "an SVG drawing"),
    (rb"(?i)\s*(<!doctype html|<html|<head|<body)", "an HTML page"),
    (rb"(?i)\s*<\?xml", "an XML document"),
)


class UnreadableImage(ValueError):
    """A file that cannot be used as an image; `reason` says why, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded.

    width, height: pixels as stored, before EXIF rotation; transparent: may carry alpha; animated: has several frames;
    peak: the number that stands for white, as far as the file says; inverted: 0 is white, and OpenCV does not turn it;
    channels: of a JPEG, 4 where it is CMYK.
    """

    format: str
    width: int
    height: int
    transparent: bool = False
    animated: bool = False
    peak: int = 255
    inverted: bool = False
    channels: int = 3


def decode_image(
    data: bytes, size: int, resize: str = "squash", *, min_side: int = 16, max_megapixels: float = 50.0, bits: int = 16
) -> NDArray[np.uint8]:
    """The image in `data` as uint8 RGB of shape (size, size, 3).

    EXIF orientation is applied, transparency composited on white, 16 bits scaled to 8, grey and CMYK turned into RGB; of
    an animation the first frame is taken. `resize`: "squash" ignores the aspect ratio, "crop" keeps the centre square,
    "pad" adds black borders; `bits`: how many of 16 hold the image, 12 for most X-rays and cameras. Raises
    UnreadableImage, with the reason, for all that is not a whole, usable image.
    """
    header = read_header(data)
    check_header(header, min_side=min_side, max_megapixels=max_megapixels)
    return decode_checked(data, header, size, resize, bits)


def check_header(header: Header, *, min_side: int, max_megapixels: float) -> None:
    """Raises UnreadableImage for an image that is too small to show anything or too large to decode."""
    width, height = header.width, header.height
    if min(width, height) < min_side:
        raise UnreadableImage(f"too small: {width}x{height}, at least {min_side} pixels a side are needed")
    if width * height > max_megapixels * 1e6:
        raise UnreadableImage(f"too large: {width}x{height} is over {max_megapixels:g} megapixels")


def decode_checked(data: bytes, header: Header, size: int, resize: str, bits: int = 16) -> NDArray[np.uint8]:
    """As `decode_image`, for data whose header was already read and checked."""
    image = _decode(data, header, size, resize, bits)
    if header.format == "JPEG" and _is_cut(data, header, image):
        raise UnreadableImage("truncated: the JPEG ends before its image does")
    image = _fit(image, size, resize)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def used_bits(data: bytes, header: Header) -> int:
    """How many of a 16-bit image's bits are used by its brightest pixel; 0 for other images, or where it is dark alone."""
    if header.peak != 65535:
        return 0
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return int(decoded.max()).bit_length() if decoded is not None and decoded.dtype == np.uint16 else 0


def read_header(data: bytes) -> Header:
    """Format and size of the image in `data`, from its first bytes; raises UnreadableImage if it is none."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _read_jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _read_png(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return _read_gif(data)
        if data.startswith(b"BM") and len(data) > 26:
            width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
            return Header("BMP", abs(width), abs(height), transparent=bits == 32)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _read_webp(data)
        if data[:4] in (b"II*\x00", b"MM\x00*"):
            return _read_tiff(data)
        if data[4:12] in (b"ftypavif", b"ftypavis"):
            return _read_avif(data)
        if re.match(rb"P[56]\s", data):
            return _read_pnm(data)
    except (struct.error, IndexError):
        raise UnreadableImage("truncated: the file ends inside its header") from None
    raise UnreadableImage(_describe_stranger(data))


def _describe_stranger(data: bytes) -> str:
    if not data:
        return "empty file"
    start = data[:1024]
    for pattern, word in _STRANGERS:
        if re.match(pattern, start, re.DOTALL):
            return word
    if b"\x00" not in start:
        try:
            start.decode("utf-8")
            return "text, not an image"
        except UnicodeDecodeError as error:
            if error.start > len(start) - 4:  # a character cut by our own 1024 bytes
                return "text, not an image"
    if not start.strip(b"\x00"):
        return "zero bytes only"
    return f"not a known image format; read are {', '.join(FORMATS)}"


def _read_jpeg(data: bytes) -> Header:
    position = 2
    while True:
        if data[position] != 0xFF:
            raise UnreadableImage("damaged JPEG: a marker is missing")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            position += 2
            continue
        # Start of frame; C4, C8 and CC are tables and extensions (ITU-T T.81, table B.1).
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, channels = struct.unpack_from(">HHB", data, position + 5)
            break
        if marker in (0xD9, 0xDA):
            raise UnreadableImage("damaged JPEG: no frame header")
        position += 2 + int(struct.unpack_from(">H", data, position + 2)[0])
    if data.rfind(b"\xff\xd9", position) < 0:  # from the end, where a whole file has it
        raise UnreadableImage("truncated: the JPEG has no end marker")
    return Header("JPEG", width, height, channels=channels)


def _read_png(data: bytes) -> Header:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    transparent, animated = colour in (4, 6), False
    position = 8
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        transparent |= kind == b"tRNS"
        animated |= kind == b"acTL"
        position += 12 + length
        # The decoder would reserve memory for whatever a chunk says, up to 4 GB.
        if position > len(data):
            raise UnreadableImage(f"truncated: a part of the PNG has {length} bytes, more than there are")
    return Header("PNG", width, height, transparent, animated, 65535 if depth == 16 else 255)


def _read_gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    frames = 0
    while position < len(data) and data[position] in (0x21, 0x2C) and frames < 2:
        if data[position] == 0x2C:  # an image: its place, perhaps a colour table, one byte, its data
            frames += 1
            flags = data[position + 9] if position + 9 < len(data) else 0
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:  # an extension
            position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return Header("GIF", width, height, transparent=True, animated=frames > 1)


def _read_webp(data: bytes) -> Header:
    match data[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return Header("WebP", width & 0x3FFF, height & 0x3FFF)
        case b"VP8L":
            bits = struct.unpack_from("<I", data, 21)[0]
            return Header("WebP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, transparent=True)
        case b"VP8X":
            flags = data[20]
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
            return Header("WebP", width, height, bool(flags & 0x10), bool(flags & 0x02))
    raise UnreadableImage("damaged WebP: unknown first chunk")


def _read_tiff(data: bytes) -> Header:
    order = "<" if data[:2] == b"II" else ">"
    offset = struct.unpack_from(order + "I", data, 4)[0]
    facts = {}
    for entry in range(struct.unpack_from(order + "H", data, offset)[0]):
        at = offset + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", data, at)
        # ImageWidth, ImageLength, BitsPerSample, PhotometricInterpretation (TIFF 6.0, section 8)
        if tag in (256, 257, 258, 262):
            value: int = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 8)[0]
            if tag == 258 and count > 2:  # one for each channel, elsewhere in the file
                value = struct.unpack_from(order + "H", data, struct.unpack_from(order + "I", data, at + 8)[0])[0]
            facts[tag] = value
    if not {256, 257} <= facts.keys():
        raise UnreadableImage("damaged TIFF: no size")
    depth = facts.get(258, 1)
    peak = 2**depth - 1 if 8 < depth <= 16 else 255
    return Header(
        "TIFF", facts[256], facts[257], transparent=True, peak=peak, inverted=peak > 255 and facts.get(262) == 0
    )


def _read_avif(data: bytes) -> Header:
    sizes = [struct.unpack_from(">II", data, match.end() + 4) for match in re.finditer(b"ispe", data[:65536])]
    if not sizes:
        raise UnreadableImage("damaged AVIF: no size")
    width, height = max(sizes)
    for coded in read_coded_sizes(data):
        if coded[0] * coded[1] > width * height:
            raise UnreadableImage(f"damaged AVIF: it says {width}x{height} and holds {coded[0]}x{coded[1]}")
    # Of `av1C`: the third byte's second and third bit say 10 or 12 bits (AV1 in ISOBMFF, 2.3.3).
    place = data.find(b"av1C", 0, 65536)
    flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
    peak = 255 if not flags & 0x40 else 4095 if flags & 0x20 else 1023
    return Header("AVIF", width, height, transparent=True, animated=data[8:12] == b"avis", peak=peak)


def _read_pnm(data: bytes) -> Header:
    gap = rb"(?:\s+#[^\n]*)*\s+(\d+)"
    match = re.match(rb"P[56]" + 3 * gap + rb"\s", data[:1024])
    if not match:
        raise UnreadableImage("damaged PNM: no size")
    width, height, peak = map(int, match.groups())
    if not 0 < peak < 65536:
        raise UnreadableImage(f"damaged PNM: the largest value is {peak}")
    return Header("PNM", width, height, peak=peak)


def _decode(data: bytes, header: Header, size: int, resize: str, bits: int) -> NDArray[np.uint8]:
    """BGR pixels, perhaps at a reduced scale, upright and opaque."""
    peak = 2**bits - 1 if header.peak == 65535 else header.peak
    buffer = np.frombuffer(data, np.uint8)
    try:
        if header.transparent or header.peak != 255:
            decoded, kinds, metadata = cv2.imdecodeWithMetadata(buffer, flags=cv2.IMREAD_UNCHANGED)
            if decoded is not None:
                return _rotate(
                    _flatten(_to_8_bits(decoded, peak, header.inverted)),
                    _orientation_of(kinds, metadata) if header.format in ("PNG", "WebP") else 1,
                )
        else:
            decoded = cv2.imdecode(
                buffer, _jpeg_flag(header, size, resize) if header.format == "JPEG" else cv2.IMREAD_COLOR
            )
            if decoded is not None:
                return np.asarray(decoded, dtype=np.uint8)
    except cv2.error as error:
        raise UnreadableImage(f"undecodable {header.format}: {str(error.err)[:80]}") from None
    raise UnreadableImage(f"truncated or damaged {header.format}")


def _is_cut(data: bytes, header: Header, image: NDArray[np.uint8]) -> bool:
    """True where a JPEG's data ends before its image, though an end marker was put behind it; libjpeg fills up with grey.

    image: the image as decoded. Of a progressive one the scans tell. Of another one a grey corner raises the doubt, which
    more data before the end marker settles: a whole image does not change by them, a cut one is filled with them. CMYK is
    always doubted: what it is filled with is of another colour.
    """
    if scans := _progressive_scans(data):
        return not all(scans)
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(np.int16)
    if header.channels != 4 and (np.abs(corners - 128) > 2).any(axis=1).all():
        return False
    end = data.rfind(b"\xff\xd9")
    filled = data[:end] + b"\x00\x35\xa6\x71\x9b\x4c\xd2\x0e" * 32 + data[end:]
    flag = cv2.IMREAD_REDUCED_COLOR_2
    plain, other = (cv2.imdecode(np.frombuffer(each, np.uint8), flag) for each in (data, filled))
    return other is None or not np.array_equal(plain, other)


def _progressive_scans(data: bytes) -> list[bool]:
    """Of a progressive JPEG: came the last bit of each component's mean, and of the first one's highest frequency? Else []."""
    frame = re.search(rb"\xff\xc2..\x08....([\x01-\x04])", data, re.DOTALL)
    if frame is None:
        return []
    means, highest = set(), False
    for scan in re.finditer(rb"\xff\xda\x00.([\x01-\x04])", data[frame.end() :], re.DOTALL):
        count, at = scan[1][0], frame.end() + scan.end()
        first, last, bits = data[at + 2 * count : at + 2 * count + 3].ljust(3, b"\xff")
        components = data[at : at + 2 * count : 2]
        if bits & 15 == 0 and first == 0:
            means |= set(components)
        if bits & 15 == 0 and last == 63:
            highest |= components[:1] == data[frame.end() : frame.end() + 1]
    return [len(means) >= frame[1][0], highest]


def _jpeg_flag(header: Header, size: int, resize: str) -> int:
    """The scale 1, 1/2, 1/4 or 1/8 at which libjpeg decodes; the image stays at least `size` pixels.

    Fewer coefficients are transformed, which is faster and a better low pass than any later resizing.
    """
    side = max(header.width, header.height) if resize == "pad" else min(header.width, header.height)
    for factor, flag in (
        (8, cv2.IMREAD_REDUCED_COLOR_8),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (2, cv2.IMREAD_REDUCED_COLOR_2),
    ):
        if side >= factor * size:
            return int(flag)
    return int(cv2.IMREAD_COLOR)


def _to_8_bits(decoded: NDArray[Any], peak: int, inverted: bool) -> NDArray[np.uint8]:
    """The pixels as 0 to 255, where `peak` is white."""
    if decoded.dtype not in (np.uint8, np.uint16):
        raise UnreadableImage(f"pixels of type {decoded.dtype}; 8 or 16 bits are read. Convert it to 8 or 16 bits")
    if decoded.dtype == np.uint16 and peak == 65535:
        decoded = decoded >> 8
    elif peak != 255:
        scaled = (np.minimum(decoded, peak).astype(np.uint32) * 510 + peak) // (2 * peak)
        # Alpha is not measured in the image's unit: where it is full, it is full.
        if decoded.ndim == 3 and decoded.shape[2] == 4 and decoded.dtype == np.uint16:
            scaled[..., 3] = decoded[..., 3] >> 8 if decoded[..., 3].max() > peak else scaled[..., 3]
        decoded = scaled
    if inverted:
        decoded = 255 - decoded
    return np.asarray(decoded, dtype=np.uint8)


def _flatten(decoded: NDArray[Any]) -> NDArray[np.uint8]:
    """BGR; transparent pixels composited on white."""
    if decoded.ndim == 2:
        return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    if decoded.shape[2] == 3:
        return np.asarray(decoded, dtype=np.uint8)
    if decoded.shape[2] != 4:
        raise UnreadableImage(f"{decoded.shape[2]} channels; 1, 3 or 4 are read")
    alpha = decoded[:, :, 3:].astype(np.uint16)
    # (height, width, 3); the + 127 rounds to the nearest level.
    mixed = (decoded[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return np.asarray(mixed, dtype=np.uint8)


def _orientation_of(kinds: object, metadata: object) -> int:
    """The EXIF orientation 1..8 among a file's metadata; 1 where there is none."""
    for kind, blob in zip(np.ravel(kinds), metadata, strict=False):  # type: ignore[call-overload]
        exif = np.asarray(blob, dtype=np.uint8).tobytes().removeprefix(b"Exif\x00\x00")
        if kind == cv2.IMAGE_METADATA_EXIF and exif[:2] in (b"II", b"MM"):
            order = "<" if exif[:2] == b"II" else ">"
            try:
                offset = struct.unpack_from(order + "I", exif, 4)[0]
                for entry in range(struct.unpack_from(order + "H", exif, offset)[0]):
                    tag, _, _, value = struct.unpack_from(order + "HHIH", exif, offset + 2 + 12 * entry)
                    if tag == 0x0112:
                        return int(value)
            except struct.error:
                return 1
    return 1


def _rotate(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image as it is meant to be seen (EXIF 2.32, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _fit(image: NDArray[np.uint8], size: int, resize: str) -> NDArray[np.uint8]:
    """The image at (size, size, 3)."""
    height, width = image.shape[:2]
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _scale(image[top : top + side, left : left + side], size, size)
    if resize == "pad":
        longest = max(height, width)
        new_height, new_width = (max(1, round(side * size / longest)) for side in (height, width))
        canvas = np.zeros((size, size, 3), np.uint8)
        top, left = (size - new_height) // 2, (size - new_width) // 2
        canvas[top : top + new_height, left : left + new_width] = _scale(image, new_width, new_height)
        return canvas
    return _scale(image, size, size)


def _scale(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resized pixels. From a shrinkage of 2 on, linear interpolation would skip pixels, so areas are averaged."""
    shrinkage = max(image.shape[0] / height, image.shape[1] / width)
    method = cv2.INTER_AREA if shrinkage >= 2 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)
