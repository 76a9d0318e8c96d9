"""Killed somewhere and run again, each of these leaves what an undisturbed run leaves; many more kills by `make torture`."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import LIGHT, LIGHT_STAGES, PROJECT, STAGES, Nursery, Slaughter, Victim, make_templates, state_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions and processes are read from /proc")
KILLS = 3  # of each stage; the draw is the same each time, so that a failure can be looked into


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery(LIGHT)
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def templates(nursery: Nursery, folder: Path) -> dict[str, Path]:
    return make_templates(nursery, folder, LIGHT_STAGES)


def test_a_fork_of_the_nursery_has_one_thread(nursery):
    assert nursery.threads == 1  # or a lock that another one held would be held for ever


@pytest.mark.parametrize("name", LIGHT_STAGES)
def test_a_killed_stage_that_is_run_again_leaves_what_an_undisturbed_one_leaves(nursery, templates, folder, name):
    slaughter = Slaughter(nursery, STAGES[name], templates[name], folder / PROJECT)
    generator = random.Random(name)
    kills = [slaughter.kill(generator, by_call=bool(number % 2)) for number in range(KILLS)]
    assert [(kill.where, kill.code, kill.differences) for kill in kills if kill.code or kill.differences] == []
    assert any(kill.fell for kill in kills)


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
