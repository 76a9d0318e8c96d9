"""Mutated images of all formats: refused in words or read whole, in bounded memory, and never a crash."""

import random

import numpy as np
import pytest
from fuzzing import MUTATIONS, SIZE, is_part_grey, make_case, run_fuzz
from torture import LONG
from zoo import encode, make_image, make_readable

from frostline.images.decoding import UnreadableImage, decode_image

CASES = 100_000 if LONG else 2_000


def test_no_mutated_image_crashes_is_taken_for_whole_or_takes_much_memory():
    found = run_fuzz(0, CASES)
    assert found["wrong"] == []
    assert found["counts"]["refused"] > CASES / 3 and found["counts"]["read"] > CASES / 5
    assert found["peak"] < 1e9


def test_every_file_meets_every_mutation_and_a_case_is_always_the_same():
    files = {name: data for name, (data, _) in make_readable().items()}
    cases = [make_case(files, number) for number in range(len(files) * len(MUTATIONS))]
    assert len({(case.name, case.mutation) for case, _ in cases}) == len(cases)
    assert cases[7] == make_case(files, 7)


def test_a_part_that_is_grey_is_seen():
    whole = np.asarray(make_image(0, SIZE, SIZE))
    cut = whole.copy()
    cut[SIZE // 2 :] = 128
    assert is_part_grey(cut, whole) and not is_part_grey(whole, whole) and not is_part_grey(cut, cut)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_cmyk_jpeg_that_was_cut_is_refused_though_an_end_marker_stands_behind_it(share):
    from PIL import Image

    data = encode(Image.fromarray(make_image(3)).convert("CMYK"), "JPEG", quality=95)
    assert decode_image(data, SIZE).shape == (SIZE, SIZE, 3)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data[: int(share * len(data))] + b"\xff\xd9", SIZE)


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"iCCP"])
def test_a_png_that_says_a_part_has_gigabytes_is_refused_before_it_is_decoded(kind, monkeypatch):
    data = encode(make_image(0), "PNG")
    lie = data[:33] + b"\xf0\x00\x00\x00" + kind + random.Random(0).randbytes(8) + data[33:]
    monkeypatch.setattr("cv2.imdecode", None)
    with pytest.raises(UnreadableImage, match=r"truncated.* 4026531840 bytes"):
        decode_image(lie, SIZE)
