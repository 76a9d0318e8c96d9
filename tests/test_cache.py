"""What workers of one machine took from `scale.store`: once, checked, and within the limit."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from frostline.errors import Refused
from frostline.files import sha256_of
from frostline.search.cache import VARIABLE, Cache, cache_folder
from frostline.search.depot import Depot

KB = 1000


@dataclass(frozen=True)
class Counted(Depot):
    """Writes down in a file of which each read is a line, and lets others wait a moment."""

    def read(self, digest: str, size: int) -> Iterator[bytes]:
        with Path(self.address).with_suffix(".read").open("a") as file:
            file.write(f"{digest}\n")
        time.sleep(0.1)
        yield from super().read(digest, size)


@pytest.fixture
def depot(tmp_path: Path) -> Counted:
    (tmp_path / "shared").mkdir()
    return Counted(str(tmp_path / "shared"), 1.0)


@pytest.fixture
def digests(depot: Counted, tmp_path: Path) -> list[str]:
    """Five files of 10 kB in the store."""
    found = []
    for number in range(5):
        path = tmp_path / f"{number}"
        path.write_bytes(bytes([number]) * 10 * KB)
        found.append(sha256_of(path))
        depot.put(path, found[-1])
    return found


def make_cache(depot: Depot, tmp_path: Path, limit: int = 100 * KB) -> Cache:
    return Cache(tmp_path / "cache", limit, depot)


def reads_of(depot: Depot) -> list[str]:
    file = Path(depot.address).with_suffix(".read")
    return file.read_text().split() if file.is_file() else []


def kept_in(cache: Cache) -> set[str]:
    return {path.name for path in (cache.folder / "files").glob("*/*") if path.name != "lock"}


def link_all(cache: Cache, digests: list[str]) -> list[int]:
    with cache.open_view() as view:
        return [
            cache.link(digest, 10 * KB, view / str(number)) and (view / str(number)).stat().st_size
            for number, digest in enumerate(digests)
        ]


def test_each_file_is_taken_once_by_all_processes_of_a_machine(
    depot: Counted, digests: list[str], tmp_path: Path
) -> None:
    cache = make_cache(depot, tmp_path)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        taken = list(pool.map(link_all, [cache] * 2, [digests] * 2))
    assert sorted(reads_of(depot)) == sorted(digests)
    assert sum(size for sizes in taken for size in sizes) == 50 * KB
    assert kept_in(cache) == set(digests)
    assert list((cache.folder / "views").iterdir()) == []


def test_a_damaged_file_is_taken_again(
    depot: Counted, digests: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link_all(make_cache(depot, tmp_path), digests)
    for digest, damage in zip(digests, (b"x" * 10 * KB, b"", b"\0" * 9 * KB), strict=False):
        (tmp_path / "cache" / "files" / digest[:2] / digest).write_bytes(damage)
    cache = make_cache(depot, tmp_path)  # as another process has it, which has looked at none
    with cache.open_view() as view:
        for digest in digests:
            cache.link(digest, 10 * KB, view / digest)
            assert sha256_of(view / digest) == digest
    assert capsys.readouterr().out.count("is damaged and is taken again") == 3
    assert sorted(reads_of(depot)) == sorted([*digests, *digests[:3]])


def test_what_is_damaged_in_the_store_is_never_used(depot: Counted, digests: list[str], tmp_path: Path) -> None:
    Path(depot.place(digests[0])).write_bytes(b"x" * 10 * KB)
    Path(depot.place(digests[1])).write_bytes(b"half")
    cache = make_cache(depot, tmp_path)
    with cache.open_view() as view:
        for digest in digests[:2]:
            with pytest.raises(Refused, match="is damaged: its sha256 is"):
                cache.link(digest, 10 * KB, view / "a")
            assert not (view / "a").exists()
    assert kept_in(cache) == set()


def test_what_was_used_longest_ago_goes_and_what_is_in_use_stays(
    depot: Counted, digests: list[str], tmp_path: Path
) -> None:
    cache = make_cache(depot, tmp_path, 30 * KB)
    with cache.open_view() as view:
        cache.link(digests[0], 10 * KB, view / "0")
        for number in (1, 2):
            link_all(cache, [digests[number]])
        link_all(cache, [digests[1]])  # used again, so the third is now older
        link_all(cache, [digests[3]])
        assert kept_in(cache) == {digests[0], digests[1], digests[3]}
        link_all(cache, [digests[4]])
        assert kept_in(cache) == {digests[0], digests[3], digests[4]}
        for number in (3, 4):
            cache.link(digests[number], 10 * KB, view / str(number))
        with pytest.raises(Refused, match=r"scale.cache_gb: .* are 1e-05 GB less than what the workers"):
            cache.link(digests[1], 10 * KB, view / "1")
        assert kept_in(cache) == {digests[0], digests[3], digests[4]}
        (view / "0").unlink()  # let go of
        cache.link(digests[1], 10 * KB, view / "1")
        assert kept_in(cache) == {digests[1], digests[3], digests[4]}
        assert (view / "3").read_bytes() == bytes([3]) * 10 * KB
    assert reads_of(depot).count(digests[0]) == 1


@dataclass(frozen=True)
class Stuck(Depot):
    """A store whose second file never comes to its end."""

    def read(self, digest: str, size: int) -> Iterator[bytes]:
        whole = b"".join(super().read(digest, size))
        if whole[0] == 1:
            yield whole[: size // 2]
            Path(self.address).with_suffix(".stuck").touch()
            time.sleep(600)
        yield whole


def hold(cache: Cache, digests: list[str]) -> None:
    with cache.open_view() as view:
        for digest in digests:
            cache.link(digest, 10 * KB, view / digest)


def test_a_killed_process_leaves_nothing_half_and_holds_nothing(
    depot: Counted, digests: list[str], tmp_path: Path
) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=hold, args=(make_cache(Stuck(depot.address, 1.0), tmp_path, 20 * KB), digests[:2])
    )
    process.start()
    while not (stuck := tmp_path / "shared.stuck").exists():
        assert process.is_alive()
        time.sleep(0.02)
    assert stuck.exists() and process.pid
    cache = make_cache(depot, tmp_path, 20 * KB)
    with cache.open_view() as view, pytest.raises(Refused, match="less than what the workers"):
        cache.link(digests[2], 10 * KB, view / "2")  # 10 kB are in use, and 10 on their way
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert link_all(cache, digests[1:3]) == [10 * KB, 10 * KB]
    assert kept_in(cache) == set(digests[1:3])
    assert list((cache.folder / "views").rglob("*")) == []


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "frostline"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "scratch"))
    assert cache_folder() == tmp_path / "scratch"
