"""What an AVIF's coded images say of their own size, which its decoder reserves memory for, whatever the file's header says.

Sources: AV1 Bitstream & Decoding Process Specification, 5.5; ISO/IEC 14496-12, 8.11.3 (`iloc`).
"""

import struct
from collections.abc import Iterator


def read_coded_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of each coded image whose sequence header can be found."""
    for start in _item_starts(data):
        position = start
        # A few units may come before it: a temporal delimiter, padding.
        for _ in range(4):
            if position + 2 > len(data) or not data[position] & 2:  # a unit without its size
                break
            length, after = _leb128(data, position + 1 + (data[position] >> 2 & 1))
            if data[position] >> 3 & 15 == 1:
                yield _read_size(data[after : after + length])
                break
            position = after + length


def _item_starts(data: bytes) -> Iterator[int]:
    """Where the file's items lie; those that lie in the header itself are no images."""
    at = data.find(b"iloc", 0, 65536)
    if at < 0:
        return
    version, sizes = data[at + 4], struct.unpack_from(">H", data, at + 8)[0]
    offset_size, length_size, base_size = (sizes >> shift & 15 for shift in (12, 8, 4))
    index_size = sizes & 15 if version else 0
    position, wide = at + 10, 4 if version == 2 else 2

    def take(size: int) -> int:
        nonlocal position
        position += size
        return int.from_bytes(data[position - size : position])

    for _ in range(min(take(wide), 256)):
        take(wide)
        method = take(2) & 15 if version else 0
        take(2)
        base = take(base_size)
        for place in range(min(take(2), 256)):
            take(index_size)
            offset = base + take(offset_size)
            take(length_size)
            if place == 0 and method == 0:
                yield offset


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        byte = data[position + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            break
    return value, position + place + 1


def _read_size(header: bytes) -> tuple[int, int]:
    """The largest width and height that a sequence header allows its frames."""
    bits, position = int.from_bytes(header[:64].ljust(64, b"\0")), 0

    def take(number: int) -> int:
        nonlocal position
        position += number
        return bits >> 512 - position & (1 << number) - 1

    take(4)  # profile, still image
    if take(1):  # the short header of still images
        take(5)
    else:
        delay_bits = 0
        if take(1):  # timing
            take(64)
            if take(1):
                zeros = 0
                while zeros < 32 and not take(1):
                    zeros += 1
                take(zeros)
            if take(1):  # decoder model
                delay_bits = take(5) + 1
                take(42)
        delay = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay_bits and take(1):
                take(2 * delay_bits + 1)
            if delay and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return take(width_bits) + 1, take(height_bits) + 1
