"""`scale.store`: a shared folder and a real S3 store, from which files come as they were put, also after it was away."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import Cluster, cluster
from torture import LONG

from frostline.errors import Refused
from frostline.files import sha256_of
from frostline.search import depot as depots
from frostline.search.depot import Depot, Missing
from frostline.tracking import patience


@pytest.fixture(scope="module")
def services() -> Iterator[Cluster]:
    with cluster("s3") as made:
        yield made
        made.kill("s3")  # asked to end, it takes ten seconds


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0.1)
    depots._open.cache_clear()  # it has read the environment


@pytest.fixture
def bucket(services: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place on the S3 store, whose keys a user has exported."""
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://frostline/{time.time_ns()}"


@pytest.fixture(params=["folder", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("bucket"))
    (tmp_path / "shared").mkdir()
    return str(tmp_path / "shared")


def make_file(folder: Path, name: str, size: int) -> tuple[Path, str]:
    path = folder / name
    path.write_bytes(bytes(index * len(name) % 251 for index in range(size)))
    return path, sha256_of(path)


def list_names(address: str) -> list[str]:
    files, root = depots._open(address)
    return sorted(name.rpartition("/")[2] for name in files.find(root))


def test_what_was_put_comes_back_block_by_block_and_is_put_once(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depots, "BLOCK", 1000)
    depot = Depot(address, 5.0)
    depot.refuse_unusable()
    path, digest = make_file(tmp_path, "a", 2500)
    assert depot.put(path, digest) and not depot.put(path, digest)
    assert [len(block) for block in depot.read(digest, 2500)] == [1000, 1000, 500]
    assert b"".join(depot.read(digest, 2500)) == path.read_bytes()
    assert list_names(address) == [digest]


def test_a_file_that_was_left_half_is_put_again(address: str, tmp_path: Path) -> None:
    depot = Depot(address, 5.0)
    path, digest = make_file(tmp_path, "a", 2500)
    depot.put(path, digest)
    files, root = depots._open(address)
    files.pipe_file(f"{root}/{digest[:2]}/{digest}", b"half")
    assert depot.put(path, digest)
    assert b"".join(depot.read(digest, 2500)) == path.read_bytes()


def test_two_who_put_the_same_at_once_leave_each_file_once_and_whole(address: str, tmp_path: Path) -> None:
    files = [make_file(tmp_path, "x" * (number + 1), 200_000) for number in range(6)]
    together = threading.Barrier(2)

    def put_all(_: int) -> int:
        together.wait()
        return sum(Depot(address, 5.0).put(path, digest) for path, digest in files)

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(put_all, range(2))) >= len(files)
    assert list_names(address) == sorted(digest for _, digest in files)
    for path, digest in files:
        assert b"".join(Depot(address, 5.0).read(digest, 200_000)) == path.read_bytes()


def test_what_is_not_there_is_refused_at_once(address: str, tmp_path: Path) -> None:
    path, digest = make_file(tmp_path, "a", 10)
    Depot(address, 60.0).put(path, digest)
    started = time.monotonic()
    with pytest.raises(Missing, match="`dvc repro tune` puts there what is missing"):
        list(Depot(address, 60.0).read("0" * 64, 10))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_store_that_is_away_for_a_minute_is_waited_for(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(depots, "BLOCK", 1000)
    path, digest = make_file(tmp_path, "a", 2500)
    other, other_digest = make_file(tmp_path, "bb", 2500)
    if kind == "s3":
        address, services = request.getfixturevalue("bucket"), request.getfixturevalue("services")
        leave, come_back = lambda: services.kill("s3"), lambda: services.up("s3")
    else:
        address, aside = str(tmp_path / "shared"), tmp_path / "aside"
        Path(address).mkdir()
        leave, come_back = lambda: Path(address).rename(aside), lambda: aside.rename(address)
    depot = Depot(address, 120.0)
    depot.put(path, digest)
    reading = depot.read(digest, 2500)
    taken = next(reading)

    leave()
    with pytest.raises(Refused, match=r"was away for more than 0.3 s \(tracking.patience_s\)"):
        list(Depot(address, 0.3).read(digest, 2500))
    capsys.readouterr()
    back = threading.Timer(60.0 if LONG else 1.0, come_back)
    back.start()
    with ThreadPoolExecutor() as pool:
        putting = pool.submit(depot.put, other, other_digest)
        taken += b"".join(reading)
        assert putting.result()
    back.join()
    said = capsys.readouterr().err
    assert taken == path.read_bytes()
    assert said.count("waiting up to 120 s for it") == 2 and said.count("is back after") == 2, said
    assert b"".join(depot.read(other_digest, 2500)) == other.read_bytes()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_what_cannot_be_used_is_refused_in_a_line_before_any_work(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(address: str) -> str:
        depots._open.cache_clear()
        with pytest.raises(Refused) as refused:
            Depot(address, 60.0).refuse_unusable()
        assert "\n" not in str(refused.value)
        return str(refused.value)

    Depot(bucket, 60.0).refuse_unusable()
    assert "FileNotFoundError" in refusal(str(tmp_path / "none"))
    make_file(tmp_path, "a", 3)
    assert "it is a file, not a folder" in refusal(str(tmp_path / "a"))
    assert "FileNotFoundError" in refusal("s3://nobodys-bucket/features")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-" * 5)
    assert "PermissionError" in (said := refusal(bucket)) and "wrong-" not in said
    monkeypatch.setattr(depots, "ANSWER_S", 1.0)
    with silent_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        assert "it does not answer within 1 s" in refusal(bucket)
    monkeypatch.setattr(depots, "ANSWER_S", 10.0)
    assert "Could not connect" in refusal(bucket)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "Unable to locate credentials" in refusal(bucket)
