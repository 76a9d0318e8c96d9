from frostline.images.decoding import FORMATS
from frostline.images.names import ARCHIVES, IMAGES, READ, is_image, is_sidecar


def test_each_format_that_is_decoded_has_suffixes_of_its_own():
    assert list(READ) == list(FORMATS)
    suffixes = [suffix for kind in READ.values() for suffix in kind]
    assert len(suffixes) == len(set(suffixes)) and set(suffixes) <= IMAGES


def test_an_archive_beside_images_is_none():
    names = [f"images{suffix}" for suffix in ARCHIVES]
    assert all(map(is_sidecar, names)) and not any(map(is_image, names))
