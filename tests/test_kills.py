"""Killed somewhere, or out of space, and run again, each of these leaves what an undisturbed run leaves; more by `make torture`."""

import contextlib
import functools
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killing import (
    HEAVY,
    LIGHT,
    LIGHT_STAGES,
    PROJECT,
    STAGES,
    VICTIMS,
    Nursery,
    Slaughter,
    Victim,
    make_templates,
    small_disk,
    state_of,
)
from torture import LONG

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions and processes are read from /proc")
KILLS = 3  # of each stage; the draw is the same each time, so that a failure can be looked into


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery(LIGHT)
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the project is a disk of its own, if this user may mount one."""
    folder = tmp_path_factory.mktemp("kills")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(small_disk(folder / PROJECT))
        yield folder


@pytest.fixture(scope="module")
def templates(nursery: Nursery, folder: Path) -> dict[str, Path]:
    return make_templates(nursery, folder, LIGHT_STAGES)


def test_a_fork_of_the_nursery_has_one_thread(nursery):
    assert nursery.threads == 1  # or a lock that another one held would be held for ever


@pytest.fixture(scope="module")
def slaughter_of(nursery: Nursery, templates: dict[str, Path], folder: Path) -> Callable[[str], Slaughter]:
    return functools.cache(lambda name: Slaughter(nursery, STAGES[name], templates[name], folder / PROJECT))


@pytest.mark.parametrize("name", LIGHT_STAGES)
def test_a_killed_stage_that_is_run_again_leaves_what_an_undisturbed_one_leaves(slaughter_of, name):
    slaughter = slaughter_of(name)
    generator = random.Random(name)
    kills = [slaughter.kill(generator, by_call=bool(number % 2)) for number in range(KILLS)]
    assert [(kill.where, kill.code, kill.differences) for kill in kills if kill.code or kill.differences] == []
    assert any(kill.fell for kill in kills)


def check_full_disk(slaughter: Slaughter, share: float) -> None:
    """With room for this share of what it writes: one line, and with more room as if nothing had been."""
    code, said, differences = slaughter.fill(share)
    last = said.splitlines()[-1]
    assert code == 2 and "Traceback" not in said, said
    assert last.startswith("frostline: ") and ("No space left on device" in last or "GB free" in last), said
    assert differences == []


@pytest.mark.parametrize("name", ["fetch", "augment"])
def test_a_full_disk_is_one_line_and_with_more_room_the_stage_goes_on(slaughter_of, folder, name):
    if not (folder / PROJECT).is_mount():
        pytest.skip("needs a disk of its own: this user, or this container, may not mount one")
    check_full_disk(slaughter_of(name), 0.7)


def test_a_disk_that_may_only_be_read_is_one_line(slaughter_of, folder):
    if not (folder / PROJECT).is_mount():
        pytest.skip("needs a disk of its own: this user, or this container, may not mount one")
    code, said = slaughter_of("fetch").lock()
    assert code == 2 and said.startswith("frostline: ") and "Read-only file system" in said and said.count("\n") == 1


@pytest.mark.skipif(not LONG, reason="all stages, several times: `make torture`")
def test_a_full_disk_at_any_stage_is_one_line_and_nothing_is_corrupt(tmp_path):
    names = [*STAGES, "promote"]
    nursery = Nursery(HEAVY)
    try:
        with small_disk(tmp_path / PROJECT):
            templates = make_templates(nursery, tmp_path, names)
            for name in names:
                slaughter = Slaughter(nursery, VICTIMS[name], templates[name], tmp_path / PROJECT, calls=False)
                for share in (0.1, 0.7):
                    print(name, share, slaughter.grown, flush=True)
                    check_full_disk(slaughter, share)
    finally:
        nursery.close()


WRITER = """
from pathlib import Path
Path("out").mkdir(exist_ok=True)
for number in range(50):
    with Path("out/numbers.txt").open("a") as file:
        file.write(f"{number}\\n")
"""


def test_what_a_kill_leaves_half_is_found(nursery, tmp_path):
    """A program that appends to what a killed one left."""
    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "write.py").write_text(WRITER, encoding="utf-8")
    victim = Victim("writer", ("write.py",))
    slaughter = Slaughter(nursery, victim, tmp_path / "template", tmp_path / "project")
    if not slaughter.calls:
        pytest.skip("needs strace")
    kill = slaughter.kill(random.Random(0), by_call=True)
    assert kill.fell and kill.code == 0 and len(kill.differences) == 1
    assert kill.differences[0].startswith("file/out/numbers.txt: ")


def test_a_state_names_what_is_there(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text('{"b": [{"c": 1}], "d": [1, 2]}')
    (tmp_path / "data" / ".1.b.npy").write_bytes(b"half")
    state = state_of(tmp_path)
    assert state["file/data/a.json:.b[0].c"] == "1" and state["file/data/a.json:.d"] == "[1, 2]"
    assert "file/data/.1.b.npy" in state
