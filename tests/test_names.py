from frostline.images.decoding import FORMATS
from frostline.images.names import ARCHIVES, IMAGE_SUFFIXES, READ, is_image, is_sidecar


def test_each_format_that_is_decoded_has_suffixes_of_its_own():
    assert list(READ) == list(FORMATS)
    suffixes = [suffix for kind in READ.values() for suffix in kind]
    assert len(suffixes) == len(set(suffixes)) and set(suffixes) <= IMAGE_SUFFIXES


def test_an_archive_beside_images_is_none():
    names = [f"images{suffix}" for suffix in ARCHIVES]
    assert all(map(is_sidecar, names)) and not any(map(is_image, names))
