"""Archives of images, unpacked without trust: every member is judged before the first one is written."""

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from frostline.errors import Refused
from frostline.images.folders import require_space
from frostline.images.names import ARCHIVES
from frostline.images.walk import decode_name

MAX_MEMBERS = 5_000_000
MAX_RATIO = 200  # unpacked to packed bytes; images are near 1, a bomb is near 1000
SMALL = 10_000_000  # bytes below which the ratio is not looked at
_FOREIGN = (
    (b"Rar!", "rar"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"PK\x07\x08", "multi-part zip"),
    (b"MSCF", "cab"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
# What damage looks like to the libraries; also a truncated download whose length nobody told.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    packed: int | None  # unknown within a compressed tar


def extract_archive(archive: Path, folder: Path, *, max_bytes: float, encoding: str | None = None) -> int:
    """Unpacks a zip or tar (plain, gzip, bzip2, xz) into the new folder `folder`; gives the number of bytes written.

    encoding: of names that are not UTF-8; None refuses such names, because each guess gives other classes.
    Raises Refused for the whole archive, and writes nothing, if any member would land outside, is a link or a device,
    is encrypted or doubled, or if the members are too large; also if the archive is damaged.
    """
    with _open_archive(archive) as opened:
        members = _list(archive, opened, max_bytes, encoding)
        folder.mkdir(parents=True)
        require_space(folder, sum(member.size for member in members))
        written = 0
        for name, size, content in _contents(archive, opened):
            target = folder / name
            with _damage_refused(archive):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    written += _copy(content, file, size, archive)
    return written


def _name_of(archive: Path, raw: bytes, encoding: str | None) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        if encoding is not None:
            return decode_name(raw, encoding)
        guesses = ", ".join(
            f"{kind}: {raw.decode(kind, errors='replace')!r}" for kind in ("cp437", "cp1252", "gb18030", "shift_jis")
        )
        raise Refused(
            f"{archive.name} holds a name that is not UTF-8: {raw!r}. Set fetch.encoding to what it is ({guesses})."
        ) from None


def check_archive(archive: Path) -> None:
    """Raises Refused where a file is no archive that `extract_archive` reads; its members are not judged yet."""
    with _open_archive(archive):
        pass


def _copy(content: IO[bytes], file: IO[bytes], size: int, archive: Path) -> int:
    """Copies one member; never more than it declared, whatever the archive then delivers."""
    left = size
    while chunk := content.read(min(1 << 20, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise Refused(f"{archive.name} delivers more bytes than it declares; it is damaged or hostile.")
        file.write(chunk)
    if left:
        raise Refused(f"{archive.name} is truncated: a member is {left} bytes short. Fetch it again.")
    return size


@contextmanager
def _open_archive(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with archive.open("rb") as file:
        start = file.read(1024)
    for magic, kind in _FOREIGN:
        if start.startswith(magic):
            raise Refused(
                f"{archive.name} is a {kind} archive, which is not read. Known are {', '.join(ARCHIVES)}; "
                "or unpack it and give the folder."
            )
    if re.match(rb"(?i)\s*(<!doctype html|<html|<head)", start):
        raise Refused(
            f"{archive.name} is not an archive: it is an HTML page, perhaps of a login. Look at what its address shows."
        )
    with _damage_refused(archive):
        opened: zipfile.ZipFile | tarfile.TarFile
        if start.startswith(b"PK"):
            opened = zipfile.ZipFile(archive)
        else:
            opened = tarfile.open(archive, "r:*")  # noqa: SIM115 (closed by the caller's `with`)
    with opened:
        yield opened


@contextmanager
def _damage_refused(archive: Path) -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise Refused(
                f"{archive.name} cannot be unpacked: {error.strerror} ({error.filename or 'no file named'})."
            ) from None
        raise Refused(
            f"{archive.name} is damaged, truncated or no archive: {' '.join(str(error).split())[:200]}. "
            f"Known are {', '.join(ARCHIVES)}."
        ) from None


def _list(
    archive: Path, opened: zipfile.ZipFile | tarfile.TarFile, max_bytes: float, encoding: str | None
) -> list[_Member]:
    """The members to write, with the names that their bytes mean; raises Refused at the first one that must not be."""
    listed: list[_Member] = []
    names: set[str] = set()
    total = 0
    with _damage_refused(archive):
        for member in (
            _members_of_zip(archive, opened, encoding)
            if isinstance(opened, zipfile.ZipFile)
            else _members_of_tar(archive, opened, encoding)
        ):
            name = _safe_name(archive, member.name)
            if name in names:
                raise Refused(
                    f"{archive.name} holds {name!r} twice; which one counts is a guess. Unpack it and give the folder."
                )
            names.add(name)
            total += member.size
            if total > max_bytes:
                raise Refused(
                    f"{archive.name} unpacks to more than {max_bytes / 1e9:g} GB. Raise fetch.max_extract_gb if that is right."
                )
            packed = archive.stat().st_size if member.packed is None else member.packed
            if member.size > SMALL and member.size > MAX_RATIO * max(packed, 1):
                raise Refused(f"{archive.name} looks like a bomb: {name!r} unpacks {packed} bytes to {member.size}.")
            if len(listed) >= MAX_MEMBERS:
                raise Refused(f"{archive.name} holds more than {MAX_MEMBERS} files.")
            listed.append(member)
    return listed


def _members_of_zip(archive: Path, opened: zipfile.ZipFile, encoding: str | None) -> Iterator[_Member]:
    for info in opened.infolist():
        # Without the flag zipfile takes cp437, which no byte contradicts; but macOS writes UTF-8 without the flag.
        if not info.flag_bits & 0x800:
            info.filename = _name_of(archive, info.orig_filename.encode("cp437"), encoding)
        if info.flag_bits & 1:
            raise Refused(f"{archive.name} is encrypted ({info.filename!r}). Unpack it and give the folder.")
        kind = info.external_attr >> 16 & 0o170000
        if kind not in (0, 0o100000, 0o040000):
            raise Refused(
                f"{archive.name} holds {info.filename!r}, a link or special file. "
                "Unpack it yourself and give the folder, if you trust it."
            )
        _safe_name(archive, info.filename)
        if not info.is_dir():
            yield _Member(info.filename, info.file_size, info.compress_size)


def _members_of_tar(archive: Path, opened: tarfile.TarFile, encoding: str | None) -> Iterator[_Member]:
    for info in opened:
        info.name = _name_of(archive, info.name.encode("utf-8", "surrogateescape"), encoding)
        if not (info.isfile() or info.isdir()) or info.issparse():
            kind = "a link" if info.issym() or info.islnk() else "a device, pipe or other special file"
            raise Refused(
                f"{archive.name} holds {info.name!r}, {kind}. Unpack it yourself and give the folder, if you trust it."
            )
        _safe_name(archive, info.name)
        if info.isfile():
            yield _Member(info.name, info.size, None)


def _safe_name(archive: Path, name: str) -> str:
    """The member's path, relative and below the folder; raises Refused where it would lead out of it."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in parts or "\x00" in name:
        raise Refused(f"{archive.name} wants to write outside its folder: {name!r}. Nothing was unpacked.")
    return "/".join(part for part in parts if part not in ("", "."))


def _contents(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile) -> Iterable[tuple[str, int, IO[bytes]]]:
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            if not info.is_dir():
                with _damage_refused(archive):
                    content = opened.open(info)
                with content:
                    yield _safe_name(archive, info.filename), info.file_size, content
        return
    for member in opened:
        if member.isfile():
            with _damage_refused(archive):
                stream = opened.extractfile(member)
            assert stream is not None
            yield _safe_name(archive, member.name), member.size, stream
