"""Sources: folders, hostile archives, and a hostile server on the loopback."""

import dataclasses
import io
import os
import socket
import stat
import struct
import sys
import tarfile
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Server, serving

from frostline.errors import Refused, redact
from frostline.files import load_json, sha256_of
from frostline.images import downloads, sources
from frostline.images.archives import extract_archive
from frostline.images.downloads import check_url, download
from frostline.images.folders import copy_layout, find_layout, natural_key
from frostline.images.sources import NAMED_SOURCES, fetch_source, source_of
from frostline.params import Fetch


def make_tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
    }


def fetch(source: object, destination: Path, **settings: Any) -> dict[str, Any]:
    place = destination.parent
    options = {"downloads": place / "downloads", "lock_file": place / "fetch.lock.json"}
    fetch_source(Fetch(source=str(source), **settings), destination, seed=1, image_size=32, **options)
    return dict(load_json(destination / "complete.json"))


# --- folders


def test_class_folders_are_copied_as_new_files_and_the_source_is_left_alone(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "images", "cats/1.jpg", "cats/deep/2.jpg", "dogs/3.jpg")
    before = snapshot(source)
    for folder in (source, source / "cats", source / "dogs"):
        folder.chmod(0o555)
    facts = fetch(source, tmp_path / "raw")
    assert snapshot(source) == before
    assert (tmp_path / "raw/cats/deep/2.jpg").read_bytes() == b"cats/deep/2.jpg"
    assert (tmp_path / "raw/cats/1.jpg").stat().st_nlink == 1
    assert facts["counts"] == {"cats": 2, "dogs": 1}
    for folder in (source, source / "cats", source / "dogs"):
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("given", "ours"), [("val", "validation"), ("Validation", "validation"), ("valid", "validation")]
)
def test_split_folders_are_recognised_under_their_usual_names(tmp_path: Path, given: str, ours: str) -> None:
    source = make_tree(
        tmp_path / "s",
        "Train/a/1.jpg",
        "Train/b/2.jpg",
        f"{given}/a/3.jpg",
        f"{given}/b/4.jpg",
        "testing/a/5.jpg",
        "testing/b/6.jpg",
    )
    layout = find_layout(source)
    assert layout.splits == ("train", "validation", "test")
    assert {entry.image_id for entry in layout.entries} >= {"train/a/1.jpg", f"{ours}/b/4.jpg", "test/b/6.jpg"}


def test_a_wrapping_folder_is_unwrapped_and_said_so(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "s", "data/data/cats/1.jpg", "data/data/dogs/1.jpg", "data/LICENSE.txt")
    layout = find_layout(source)
    assert layout.classes == ("cats", "dogs")
    assert any("unwrapped" in note for note in layout.notes)


def test_junk_is_ignored(tmp_path: Path) -> None:
    names = (
        "__MACOSX/cats/._1.jpg",
        "cats/1.jpg",
        "cats/._1.jpg",
        "cats/.DS_Store",
        "cats/Thumbs.db",
        "dogs/1.jpg",
        "dogs/.ipynb_checkpoints/1.jpg",
    )
    layout = find_layout(make_tree(tmp_path, *names))
    assert [entry.image_id for entry in layout.entries] == ["cats/1.jpg", "dogs/1.jpg"]


def test_classes_are_sorted_as_a_person_would() -> None:
    assert sorted(["10", "9", "1", "b2", "b10", "a"], key=natural_key) == ["1", "9", "10", "a", "b2", "b10"]


def test_odd_names_pass_unchanged(tmp_path: Path) -> None:
    names = ["a b & (c)/1 #?%.jpg", "-lead/日本.jpg", "new\nline/x.jpg"]
    layout = find_layout(make_tree(tmp_path / "s", *names))
    copy_layout(layout, tmp_path / "raw")
    assert {entry.image_id for entry in find_layout(tmp_path / "raw").entries} == set(names)


def test_classes_that_differ_in_case_or_unicode_form_are_pointed_out(tmp_path: Path) -> None:
    layout = find_layout(make_tree(tmp_path, "Cat/1.jpg", "cat/1.jpg", "caf\u00e9/1.jpg", "cafe\u0301/1.jpg"))
    assert len(layout.classes) == 4
    assert sum("differ only in case" in note for note in layout.notes) == 2


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ((), "holds nothing"),
        (("1.jpg", "2.jpg"), "images/cats/1.jpg"),
        (("train/a/1.jpg", "train/b/1.jpg", "other/a/1.jpg"), "beside others"),
        (("test/a/1.jpg", "validation/a/1.jpg"), "no `train`"),
        (("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"), "differ in their classes"),
        (("train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"), "several folders for one split"),
    ],
)
def test_a_folder_of_another_shape_is_refused_with_the_reason(
    tmp_path: Path, names: tuple[str, ...], word: str
) -> None:
    with pytest.raises(Refused, match=word):
        find_layout(make_tree(tmp_path, *names))


def test_an_empty_class_folder_is_refused_by_name(tmp_path: Path) -> None:
    make_tree(tmp_path, "cats/1.jpg", "dogs/1.jpg")
    (tmp_path / "birds").mkdir()
    with pytest.raises(Refused, match="birds"):
        find_layout(tmp_path)


def test_links_are_not_followed_out_of_the_folder_and_special_files_are_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    source = make_tree(tmp_path / "s", "cats/1.jpg", "dogs/1.jpg")
    (source / "cats/inside.jpg").symlink_to(source / "dogs/1.jpg")
    (source / "cats/out.jpg").symlink_to(secret)
    (source / "cats/broken.jpg").symlink_to(source / "nothing")
    (source / "cats/loop").symlink_to(source / "cats")
    (source / "cats/self.jpg").symlink_to(source / "cats/self.jpg")
    os.mkfifo(source / "cats/pipe.jpg")
    (source / "birds").symlink_to(tmp_path)
    with pytest.raises(Refused, match="birds"):  # all that is in it was skipped
        find_layout(source)
    (source / "birds").unlink()
    layout = find_layout(source)
    assert {entry.image_id for entry in layout.entries} == {"cats/1.jpg", "cats/inside.jpg", "dogs/1.jpg"}
    reasons = dict(layout.skipped)
    assert "out of the folder" in reasons["cats/out.jpg"]
    assert "broken" in reasons["cats/broken.jpg"] and "broken" in reasons["cats/self.jpg"]
    assert "a link to the folder" in reasons["cats/loop"]
    assert "pipe" in reasons["cats/pipe.jpg"]
    assert fetch(source, tmp_path / "raw")["skipped"] == [list(pair) for pair in layout.skipped]
    assert all("secret" not in path.read_text() for path in (tmp_path / "raw").rglob("*.jpg"))


def test_a_full_disk_is_noticed_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tree(tmp_path / "s", "cats/1.jpg", "dogs/1.jpg")
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(Refused, match="GB free"):
        fetch(source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_generated_images_are_a_source(tmp_path: Path) -> None:
    facts = fetch("generated", tmp_path / "raw", images_per_class=2)
    assert len(facts["counts"]) >= 5 and set(facts["counts"].values()) == {2}


def test_an_unknown_source_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="tf_flowers"):
        fetch("no/such/thing", tmp_path / "raw")


@pytest.mark.parametrize(
    ("given", "kind", "is_path"),
    [
        *(("generated", sources.Generated, False), ("tfds:beans", sources.TensorFlowSet, False)),
        *(("tf_flowers", sources.Download, False), ("https://host/a.zip", sources.Download, False)),
        *(("images", sources.Local, True), ("", sources.Local, True)),
    ],
)
def test_each_source_is_of_one_kind(given: str, kind: type, is_path: bool) -> None:
    source = sources.source_of(Fetch(source=given))
    assert type(source) is kind and source.is_path == is_path


def test_images_are_counted_before_they_are_fetched_where_that_can_be_told(tmp_path: Path) -> None:
    tree = (
        f"{split}/{name}/{split}{number}.jpg"
        for split in ("train", "test")
        for name in ("cats", "dogs")
        for number in "12"
    )
    make_tree(tmp_path, *tree, "train/cats/3.jpg")
    assert sources.source_of(Fetch(source=str(tmp_path))).count() == (9, 2, {"train": 5, "test": 4})
    assert sources.source_of(Fetch(source="generated", images_per_class=5)).count() == (40, 8, {})
    for source in ("tf_flowers", "tfds:beans", "https://host/a.zip", "a.zip"):
        with pytest.raises(Refused, match="dvc repro fetch"):
            sources.source_of(Fetch(source=source)).count()


# --- archives

GOOD = {"set/cats/1.jpg": b"cat" * 100, "set/cats/2.jpg": b"tac" * 100, "set/dogs/1.jpg": b"dog" * 100}


def make_zip(path: Path, members: dict[str, bytes] = GOOD, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_tar(
    path: Path, members: dict[str, bytes] = GOOD, *, mode: str = "w:gz", extra: tuple[tarfile.TarInfo, ...] = ()
) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz", "a.tar.bz2", "a.tar.xz"])
def test_an_archive_is_unpacked_whatever_its_kind(tmp_path: Path, kind: str) -> None:
    modes = {"a.tar": "w", "a.tgz": "w:gz", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz"}
    path = make_zip(tmp_path / kind) if kind == "a.zip" else make_tar(tmp_path / kind, mode=modes[kind])
    facts = fetch(path, tmp_path / "raw", sha256=sha256_of(path))
    assert facts["counts"] == {"cats": 2, "dogs": 1}
    assert (tmp_path / "raw/cats/1.jpg").read_bytes() == GOOD["set/cats/1.jpg"]
    assert facts["sha256"] == {kind: sha256_of(path)}


def zip_link(path: Path) -> Path:
    info = zipfile.ZipInfo("set/cats/link.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    make_zip(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/hostname")
    return path


def zip_encrypted(path: Path) -> Path:
    data = bytearray(make_zip(path).read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(magic, at + 1)
    path.write_bytes(data)
    return path


def zip_twice(path: Path) -> Path:
    make_zip(path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("set/cats/1.jpg", b"other")
    return path


def zip_that_lies(path: Path) -> Path:
    """Declares 10 bytes where it delivers 3 million."""
    data = bytearray(make_zip(path, {"set/cats/1.jpg": bytes(3_000_000)}).read_bytes())
    local, central = data.find(b"PK\x03\x04"), data.find(b"PK\x01\x02")
    struct.pack_into("<I", data, local + 22, 10)
    struct.pack_into("<I", data, central + 24, 10)
    path.write_bytes(data)
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip with ..": (lambda p: make_zip(p, {**GOOD, "../evil.jpg": b"x"}), "outside"),
    "zip with an absolute name": (lambda p: make_zip(p, {**GOOD, "/tmp/evil.jpg": b"x"}), "outside"),
    "zip with a drive": (lambda p: make_zip(p, {**GOOD, "C:\\evil.jpg": b"x"}), "outside"),
    "zip with backslashes": (lambda p: make_zip(p, {**GOOD, "a\\..\\..\\evil.jpg": b"x"}), "outside"),
    "zip with a link": (zip_link, "link or special file"),
    "zip with a password": (zip_encrypted, "encrypted"),
    "zip with a doubled member": (zip_twice, "twice"),
    "zip bomb": (lambda p: make_zip(p, {**GOOD, "set/cats/big.jpg": bytes(30_000_000)}), "bomb"),
    "zip that lies about a size": (zip_that_lies, "damaged|more bytes"),
    "zip over the limit": (
        lambda p: make_zip(p, {f"a/{i}.jpg": os.urandom(1_000_000) for i in range(6)}),
        "max_extract_gb",
    ),
    "zip cut in half": (lambda p: cut(make_zip(p)), "damaged"),
    "tar with ..": (lambda p: make_tar(p, {**GOOD, "set/../../evil.jpg": b"x"}), "outside"),
    "tar with an absolute name": (lambda p: make_tar(p, {**GOOD, "/tmp/evil.jpg": b"x"}), "outside"),
    "tar with a link, then a file through it": (
        lambda p: make_tar(p, {"set/door/evil.jpg": b"x"}, extra=(special("set/door", tarfile.SYMTYPE, "/tmp"),)),
        "a link",
    ),
    "tar with a hard link": (
        lambda p: make_tar(p, extra=(special("set/cats/h.jpg", tarfile.LNKTYPE, "/etc/hostname"),)),
        "a link",
    ),
    "tar with a device": (lambda p: make_tar(p, extra=(special("set/cats/d.jpg", tarfile.CHRTYPE),)), "device"),
    "tar with a pipe": (lambda p: make_tar(p, extra=(special("set/cats/f.jpg", tarfile.FIFOTYPE),)), "pipe"),
    "tar bomb": (lambda p: make_tar(p, {**GOOD, "set/cats/big.jpg": bytes(30_000_000)}), "bomb|max_extract_gb"),
    "tar cut in half": (lambda p: cut(make_tar(p, {"set/cats/1.jpg": os.urandom(100_000)})), "damaged|truncated"),
    "a rar": (lambda p: write(p, b"Rar!\x1a\x07" + bytes(100)), "rar"),
    "an HTML page": (lambda p: write(p, b"<!DOCTYPE html><html>log in</html>"), "HTML"),
    "a text": (lambda p: write(p, b"hello"), "no archive"),
    "an empty file": (lambda p: write(p, b""), "no archive"),
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def cut(path: Path) -> Path:
    data = path.read_bytes()
    return write(path, data[: len(data) // 2])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    make, word = HOSTILE[name]
    place = tmp_path / "in"
    place.mkdir()
    archive = make(place / "images.archive")
    with pytest.raises(Refused, match=word):
        fetch(archive, tmp_path / "out" / "raw", max_extract_gb=0.005 if "limit" in name else 0.05)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]
    assert left == [] and not Path("/tmp/evil.jpg").exists()


def test_nothing_is_written_before_all_members_are_judged(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {**GOOD, "../evil.jpg": b"x"})
    with pytest.raises(Refused):
        extract_archive(archive, tmp_path / "out", max_bytes=1e9)
    assert not (tmp_path / "out").exists()


def zipped(path: Path, *names: bytes, flag: bool = False) -> Path:
    """A zip whose names are these bytes, with or without the flag that says they are UTF-8."""
    with zipfile.ZipFile(path, "w") as file:
        for number, _ in enumerate(names):
            file.writestr(zipfile.ZipInfo(f"{number:04d}{'x' * 40}"), b"1")
    data = path.read_bytes()
    for number, name in enumerate(names):
        placeholder = f"{number:04d}{'x' * 40}".encode()
        # Names are as long as their place holders, so that no offset changes.
        padded = name.replace(b"#", b"x" * (len(placeholder) - len(name) + 1))
        assert len(padded) == len(placeholder)
        data = data.replace(placeholder, padded)
    path.write_bytes(data)
    return path


CAFE = "caf\u00e9"


def test_a_zip_without_the_flag_is_utf_8_where_its_bytes_are(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", f"{CAFE}/#1.jpg".encode(), "\u65e5\u672c/#1.jpg".encode(), b"dogs/#1.jpg")
    extract_archive(archive, tmp_path / "out", max_bytes=1e6)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CAFE, "\u65e5\u672c", "dogs"}


def test_a_zip_with_other_names_is_refused_or_read_in_the_encoding_asked_for(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", f"{CAFE}/#1.jpg".encode("cp437"), b"dogs/#1.jpg")
    with pytest.raises(Refused, match=f"(?s)not UTF-8.*fetch.encoding.*cp437: '{CAFE}"):
        extract_archive(archive, tmp_path / "out", max_bytes=1e6)
    assert not (tmp_path / "out").exists()
    extract_archive(archive, tmp_path / "out", max_bytes=1e6, encoding="cp437")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CAFE, "dogs"}


def test_a_tar_with_names_that_are_not_utf_8_is_treated_alike(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT, encoding="cp1252") as file:
        info = tarfile.TarInfo(f"{CAFE}/1.jpg")
        info.size = 1
        file.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(Refused, match=r"not UTF-8.*fetch.encoding"):
        extract_archive(archive, tmp_path / "out", max_bytes=1e6)
    extract_archive(archive, tmp_path / "out", max_bytes=1e6, encoding="cp1252")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [CAFE]


def test_an_archive_with_another_sha256_is_refused_with_both(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip")
    with pytest.raises(Refused, match=f"(?s)expected sha256 {'0' * 64}.*found sha256 {sha256_of(path)}"):
        fetch(path, tmp_path / "raw", sha256="0" * 64)


# --- the network


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, behaviour = self.server, self.server.behaviour
        tries = len(server.ranges)
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        server.asked.append(self.path)
        data, start, status = server.files.get(self.path, server.data), 0, 200
        if behaviour == "stall" or (behaviour == "stall once" and not tries):
            server.stop.wait(5)
            return
        if behaviour.startswith("redirect "):
            self.send_response(302)
            self.send_header("Location", behaviour.removeprefix("redirect "))
            self.end_headers()
            return
        if behaviour == "404" or (behaviour == "503 twice" and tries < 2) or behaviour == "503":
            self.send_error(404 if behaviour == "404" else 503)
            return
        if behaviour.startswith("busy ") and not tries:
            status_asked, after = behaviour.split(" ", 2)[1:]
            self.send_response(int(status_asked))
            self.send_header("Retry-After", after)
            self.end_headers()
            return
        if wanted and behaviour != "no ranges" and self.headers.get("If-Range") in (None, '"v1"'):
            start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if behaviour == "html" else "application/zip")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if behaviour != "no length":
            self.send_header("Content-Length", str(len(data) - start))
        if behaviour != "no validator":
            self.send_header("ETag", '"v2"' if behaviour == "changed" else '"v1"')
        self.end_headers()
        body = data[start:]
        if behaviour == "no length" or (behaviour.startswith("cut") and tries < 1):
            body = body[: len(body) // 2]
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Handler) as running:
        yield running


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    return make_zip(tmp_path / "good.zip", {**GOOD, "set/dogs/2.jpg": os.urandom(300_000)}).read_bytes()


def get(server: Server, tmp_path: Path, **options: Any) -> Path:
    settings = {"allow_private": True, "back_off": 0.01, "lock_file": tmp_path / "fetch.lock.json"} | options
    return download(f"{server.url}/images.zip", tmp_path / "downloads", **settings)


def test_a_url_is_fetched_unpacked_and_its_sha256_recorded(tmp_path: Path, server: Server, good: bytes) -> None:
    server.data = good
    facts = fetch(f"{server.url}/images.zip?token=s3cret", tmp_path / "raw", allow_private=True)
    assert facts["counts"] == {"cats": 2, "dogs": 2}
    lock = (tmp_path / "fetch.lock.json").read_text()
    assert "s3cret" not in lock + (tmp_path / "raw/complete.json").read_text()
    assert next(iter(load_json(tmp_path / "fetch.lock.json").values()))["sha256"] in facts["sha256"].values()


def test_a_source_that_changed_since_is_refused_and_the_old_file_kept(
    tmp_path: Path, server: Server, good: bytes
) -> None:
    server.data = good
    first = get(server, tmp_path)
    first.write_bytes(b"damaged on the disk")  # so that it is fetched again
    server.data = make_zip(tmp_path / "other.zip", {"a/1.jpg": b"x"}).read_bytes()
    with pytest.raises(Refused, match="changed since it was first fetched"):
        get(server, tmp_path)
    assert not list((tmp_path / "downloads").glob("*.part*"))


def test_a_wrong_sha256_is_refused_and_the_file_removed(tmp_path: Path, server: Server, good: bytes) -> None:
    server.data = good
    with pytest.raises(Refused, match=f"(?s)expected sha256 {'1' * 64}.*received"):
        get(server, tmp_path, sha256="1" * 64)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_fetched_file_is_not_fetched_again(tmp_path: Path, server: Server, good: bytes) -> None:
    server.data = good
    assert get(server, tmp_path) == get(server, tmp_path)
    assert len(server.ranges) == 1


def test_a_connection_that_breaks_is_resumed_where_it_stopped(tmp_path: Path, server: Server, good: bytes) -> None:
    server.data, server.behaviour = good, "cut"
    assert get(server, tmp_path).read_bytes() == good
    assert server.ranges == [None, f"bytes={len(good) // 2}-"]


def test_a_killed_download_is_resumed_by_the_next_run(
    tmp_path: Path, server: Server, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.data, server.behaviour = good, "cut"
    monkeypatch.setattr(downloads, "RETRIES", 0)
    with pytest.raises(Refused, match="run again to go on"):
        get(server, tmp_path)
    server.behaviour = ""
    assert get(server, tmp_path).read_bytes() == good
    assert server.ranges[1] == f"bytes={len(good) // 2}-"


@pytest.mark.parametrize("behaviour", ["cut, then changed", "cut, no validator"])
def test_parts_of_two_files_are_never_joined(
    tmp_path: Path, server: Server, good: bytes, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.data, server.behaviour = good, "cut"
    monkeypatch.setattr(downloads, "RETRIES", 0)
    with pytest.raises(Refused):
        get(server, tmp_path)
    if behaviour == "cut, no validator":
        next((tmp_path / "downloads").glob("*.validator")).write_text("")
    new = make_zip(tmp_path / "new.zip", {**GOOD, "set/dogs/3.jpg": os.urandom(400_000)}).read_bytes()
    server.data, server.behaviour = new, "no ranges" if behaviour == "cut, then changed" else ""
    assert get(server, tmp_path).read_bytes() == new


def test_a_secret_stands_in_the_environment_and_nowhere_else(
    tmp_path: Path, server: Server, good: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.data = good
    address = server.url + "/images.zip?v=1&token=${FROST_TOKEN}"
    with pytest.raises(Refused, match=r"export FROST_TOKEN="):
        download(address, tmp_path / "downloads", allow_private=True, lock_file=tmp_path / "fetch.lock.json")
    monkeypatch.setenv("FROST_TOKEN", "hunter2")
    source_of(Fetch(source=address)).check(tmp_path)
    download(address, tmp_path / "downloads", allow_private=True, lock_file=tmp_path / "fetch.lock.json")
    assert server.asked[-1] == "/images.zip?v=1&token=hunter2"
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".zip"]
    assert written and b"hunter2" not in b"".join(written)
    assert "hunter2" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "query",
    [
        "token=s3cret",
        "v=1&X-Amz-Credential=AKIA&X-Amz-Signature=s3cret",
        "AWSAccessKeyId=AK&Signature=s3cret",
        "sv=2024&sig=s3cret",
        "access_token=s3cret",
        "apiKey=s3cret",
    ],
)
def test_a_secret_in_the_address_is_refused_with_the_way_to_give_it(tmp_path: Path, query: str) -> None:
    with pytest.raises(Refused, match=r"is a secret.*\$\{VARIABLE\}") as refusal:
        source_of(Fetch(source=f"https://example.org/a.zip?{query}")).check(tmp_path)
    assert "s3cret" not in str(refusal.value)
    source_of(Fetch(source="https://example.org/a.zip?v=3&monkeys=2")).check(tmp_path)


def test_a_busy_server_is_asked_again(tmp_path: Path, server: Server, good: bytes) -> None:
    server.data, server.behaviour = good, "503 twice"
    assert get(server, tmp_path).read_bytes() == good


@pytest.mark.parametrize(
    ("behaviour", "low", "high"),
    [
        ("busy 429 7", 7, 7),
        ("busy 503 {in half a minute}", 20, 30),
        ("busy 503 86400", 60, 60),
        ("busy 503 soon", 0.01, 0.01),
        ("busy 503 -5", 0.01, 0.01),
        ("busy 503 Thu, 01 Jan 1970 00:00:00 GMT", 0.01, 0.01),
        ("busy 500 7", 0.01, 0.01),
    ],
)
def test_a_busy_server_is_given_the_time_that_it_asks_for(
    tmp_path: Path,
    server: Server,
    good: bytes,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    low: float,
    high: float,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.data, server.behaviour = good, behaviour.replace("{in half a minute}", soon)
    assert get(server, tmp_path).read_bytes() == good
    assert len(waits) == 1 and low <= waits[0] <= high


@pytest.mark.parametrize(
    ("behaviour", "word"),
    [
        ("404", "404"),
        ("503", "503"),
        ("html", "text/html"),
        ("redirect file:///etc/hostname", "not an http"),
        ("redirect /again", "redirects more than"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, server: Server, good: bytes, behaviour: str, word: str) -> None:
    server.data, server.behaviour = good, behaviour
    with pytest.raises(Refused, match=word):
        get(server, tmp_path)
    assert not [path for path in (tmp_path / "downloads").glob("*") if not path.name.endswith(".part")]


def test_a_stalled_server_is_given_up(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.behaviour = "stall"
    monkeypatch.setattr(downloads, "READ_SECONDS", 0.2)
    monkeypatch.setattr(downloads, "RETRIES", 1)
    with pytest.raises(Refused, match="could not be fetched after 2 tries"):
        get(server, tmp_path)


def test_a_cut_download_whose_length_nobody_told_is_refused_as_damaged(
    tmp_path: Path, server: Server, good: bytes
) -> None:
    server.data, server.behaviour = good, "no length"
    with pytest.raises(Refused, match="damaged"):
        fetch(f"{server.url}/images.zip", tmp_path / "raw", allow_private=True)
    assert not (tmp_path / "raw").exists()


def test_private_addresses_are_refused_unless_allowed(tmp_path: Path, server: Server) -> None:
    with pytest.raises(Refused, match="not public"):
        get(server, tmp_path, allow_private=False)
    assert server.ranges == []


def test_a_redirect_to_a_private_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "169.254.169.254", "10.1.2.3", "[::1]", "[::ffff:10.0.0.1]", "0.0.0.0"):
        with pytest.raises(Refused, match="not public"):
            download(f"http://{host}/a.zip", tmp_path, back_off=0.0)
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.168.0.1", 80))]
    )
    with pytest.raises(Refused, match=r"192\.168\.0\.1"):
        download("http://innocent.example/a.zip", tmp_path, back_off=0.0)


@pytest.mark.parametrize(
    "url", ["https://user:s3cret@example.com/a.zip", "ftp://example.com/a.zip", "https:///a.zip", "file:///etc/passwd"]
)
def test_an_address_that_is_not_plain_http_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(Refused) as refusal:
        check_url(url)
    assert "s3cret" not in str(refusal.value)


def test_secrets_are_taken_out_of_addresses() -> None:
    assert redact("https://me:pw@h.org:8443/a.zip?token=abc&x=1#frag") == "https://h.org:8443/a.zip?token=***&x=***"


def test_named_sources_are_https_and_have_well_formed_checksums() -> None:
    for archives in NAMED_SOURCES.values():
        for archive in archives:
            check_url(archive.url)
            assert archive.url.startswith("https://")
            assert archive.sha256 is None or len(bytes.fromhex(archive.sha256)) == 32


def test_a_named_source_of_two_archives_becomes_two_splits(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.data = make_zip(tmp_path / "one.zip", {"horses/1.png": b"h", "humans/1.png": b"m"}).read_bytes()
    both = tuple(
        sources.Archive(f"{server.url}/images.zip?{split}=1", split=split) for split in ("train", "validation")
    )
    monkeypatch.setattr(sources, "NAMED_SOURCES", {"labs": both})
    facts = fetch("labs", tmp_path / "raw", allow_private=True)
    assert set(facts["counts"]) == {"train/horses", "train/humans", "validation/horses", "validation/humans"}


@pytest.mark.parametrize(
    ("name", "members", "classes"),
    [
        (
            "cats_vs_dogs",
            {
                "cats_and_dogs_filtered.zip": [
                    "cats_and_dogs_filtered/vectorize.py",
                    *(
                        f"cats_and_dogs_filtered/{split}/{pet}/{pet[:3]}.1.jpg"
                        for split in ("train", "validation")
                        for pet in ("cats", "dogs")
                    ),
                ]
            },
            {"train/cats", "train/dogs", "validation/cats", "validation/dogs"},
        ),
        (
            "horses_or_humans",
            {
                "horse-or-human.zip": ["horses/horse01-0.png", "humans/human01-00.png"],
                "validation-horse-or-human.zip": ["horses/horse1-000.png", "humans/valhuman01-00.png"],
            },
            {"train/horses", "train/humans", "validation/horses", "validation/humans"},
        ),
        (
            "tf_flowers",
            {
                "flower_photos.tgz": [
                    "flower_photos/LICENSE.txt",
                    "flower_photos/daisy/1.jpg",
                    "flower_photos/roses/2.jpg",
                ]
            },
            {"daisy", "roses"},
        ),
    ],
)
def test_each_named_source_is_fetched_as_it_lies_there(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    members: dict[str, list[str]],
    classes: set[str],
) -> None:
    """Small archives of the same names and layout in the place of the real ones; the rest is what a user runs."""
    published = NAMED_SOURCES[name]
    assert [archive.url.rpartition("/")[2] for archive in published] == list(members)
    server.files, local = {}, []
    for archive, (file, names) in zip(published, members.items(), strict=True):
        tree = make_tree(tmp_path / file.split(".")[0], *names)
        path = tmp_path / file
        if file.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as packed:
                for member in names:
                    packed.write(tree / member, member)
        else:
            with tarfile.open(path, "w:gz") as packed:
                packed.add(tree / "flower_photos", "flower_photos")
        server.files[f"/{file}"] = path.read_bytes()
        url = server.url + f"/{file}"
        local.append(dataclasses.replace(archive, url=url, sha256=archive.sha256 and sha256_of(path)))
    monkeypatch.setattr(sources, "NAMED_SOURCES", {name: tuple(local)})
    facts = fetch(name, tmp_path / "raw", allow_private=True)
    assert set(facts["counts"]) == classes and len(facts["sha256"]) == len(members)
    # Only what has no published checksum is recorded.
    assert (tmp_path / "fetch.lock.json").is_file() == (published[0].sha256 is None)
    if published[0].sha256:
        wrong = tuple(dataclasses.replace(archive, sha256="0" * 64) for archive in local)
        monkeypatch.setattr(sources, "NAMED_SOURCES", {name: wrong})
        with pytest.raises(Refused, match="another content than expected"):
            fetch(name, tmp_path / "other", allow_private=True)


# --- tfds


def test_tfds_without_its_extra_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(Refused, match="extra `tfds`"):
        fetch("tfds:beans", tmp_path / "raw")


def test_tfds_sets_become_class_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of the library's interface: the real one is an extra and needs a network."""

    class Labels:
        def int2str(self, label: int) -> str:
            return ["cat", "dog/wolf"][label]

    class Builder:
        info = types.SimpleNamespace(
            features={"image": None, "label": Labels()}, splits={"train": 2, "test": 2, "unlabelled": 1}
        )

        def download_and_prepare(self) -> None:
            pass

        def as_dataset(self, split: str, decoders: object, shuffle_files: bool) -> list[dict[str, Any]]:
            return [{"image": b"\x89PNG" + split.encode(), "label": np.int64(label)} for label in (0, 1)]

    library = types.SimpleNamespace(
        builder=lambda *_, **__: Builder(),
        as_numpy=lambda data: data,
        decode=types.SimpleNamespace(SkipDecoding=lambda: None),
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", library)
    facts = fetch("tfds:pets", tmp_path / "raw")
    assert facts["counts"] == {"test/cat": 1, "test/dog_wolf": 1, "train/cat": 1, "train/dog_wolf": 1}
