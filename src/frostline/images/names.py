"""What a file's or folder's name says: no image, a split, something beside the images."""

import re
from collections.abc import Mapping
from itertools import chain
from pathlib import PurePath

# The kinds of images that are read -> the suffixes that each goes by.
READ: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WebP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "PNM": (".ppm", ".pgm", ".pnm"),
}
# With what is an image by its name, too, though rare or not read: prepare says so of each.
IMAGE_SUFFIXES = frozenset(chain(*READ.values(), (".apng", ".dib", ".pbm", ".heic", ".heif", ".jp2", ".jxl")))
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")  # that are unpacked
# How people name a split's folder -> our name below `data/raw`.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "valset": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "testset": "test",
}
# Folders of images without labels, as competitions have them.
UNLABELLED = frozenset({"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unlabel", "unsup"})
# Folders that stand beside the images, and hold none.
BESIDE = frozenset(
    {
        *("annotation", "annotations", "label", "labels", "metadata", "meta", "lists", "list", "xml", "xmls", "json"),
        *("docs", "csv", "txt", "info", "readme", "scripts", "code", "imagesets", "splits"),
    }
)
IMAGES = frozenset({"image", "images", "img", "imgs", "jpegimages", "pictures", "photos", "jpg", "png"})
MASKS = frozenset(
    {"mask", "masks", "segmentation", "segmentations", "gt", "groundtruth", "ground_truth", "labels", "trimaps"}
)

# Left by systems and programs, in any spelling.
_JUNK = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "_ds_store", "@eadir"),
        *("$recycle.bin", "recycler", "system volume information", "lost+found", "#recycle", "found.000"),
        *("complete.json", "picasa.ini", "zbthumbnail.info", "folder.htt", "network trash folder", "temporary items"),
        "__pycache__",
    }
)
_JUNK_PATTERN = re.compile(r"\.|~\$|thumbs\.db:|.*\.(tmp|part|crdownload|swp|lnk|url)$|.*~$", re.IGNORECASE | re.DOTALL)
# What goes with an image under its name, or tells of the folder: no image, and no broken one.
_SIDECARS = frozenset(
    {
        *(".xml", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".md", ".rst", ".html", ".htm", ".ini"),
        *(
            ".db",
            ".log",
            ".cfg",
            ".mat",
            ".npy",
            ".npz",
            ".pkl",
            ".h5",
            ".xmp",
            ".aae",
            ".thm",
            ".pts",
            ".lst",
            ".names",
        ),
        *(".doc", ".docx", ".xls", ".xlsx", ".rtf", ".py", ".ipynb", ".sh", ".m", ".c", ".h", ".bat", ".css", ".js"),
        *(".mp4", ".mov", ".avi", ".mkv", ".mp3", ".wav", ".7z", ".rar", ".md5", ".sha1", ".sha256"),
        *(".bak", ".old", ".orig", ".dat", ".bin", ".prj", ".tfw", ".jgw", ".pgw", ".tfrecord", ".cache", ".sqlite"),
        *(PurePath(f"any{suffix}").suffix for suffix in ARCHIVES),
    }
)


def is_junk(name: str) -> bool:
    """Is it left behind by a system or a program, and of no interest to anybody?"""
    return name.casefold() in _JUNK or _JUNK_PATTERN.match(name) is not None


def is_sidecar(name: str) -> bool:
    """Does the name say that it is no image, but something beside one?

    >>> [is_sidecar(name) for name in ("1.xml", "1.TXT", "1.jpg", "1.jpg.json", "IMG_2", "1.cr2")]
    [True, True, False, True, False, False]
    """
    return PurePath(name).suffix.lower() in _SIDECARS


def is_image(name: str) -> bool:
    """Has it the suffix of an image? What is inside is not looked at."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def split_of(name: str) -> str | None:
    """The split that a folder is called after, as a word of its name; None where there is no such word, or more than one.

    >>> [split_of(name) for name in ("Train", "seg_test", "train2017", "test1", "images-val", "cats", "train_test")]
    ['train', 'test', 'train', 'test', 'validation', None, None]
    """
    found = {SPLIT_NAMES[word] for word in _words(name) if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def is_unlabelled(name: str) -> bool:
    """Does a folder's name say that its images have no labels?"""
    return not UNLABELLED.isdisjoint(_words(name))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", name.lower())
