"""The search's processes: none is left behind, whatever their parent ends with."""

import multiprocessing
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from frostline.scale import local


def end_or_stay(folder: Path) -> None:
    """One worker ends early, the others stay."""
    with suppress(FileExistsError):
        (folder / "first").mkdir()
        os._exit(3)
    time.sleep(600)


def test_a_search_that_cannot_go_on_leaves_no_worker_to_wait_for(tmp_path):
    def lose(_: str) -> None:
        raise OSError("the study's disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        local.Local(2).run_workers(end_or_stay, (tmp_path,), 2, here=lambda: iter(()), lost=lose)  # type: ignore[arg-type]
    assert multiprocessing.active_children() == []  # the interpreter would wait for them


def test_a_worker_whose_start_was_broken_off_is_ended_too(monkeypatch):
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.process, "_children", set())  # as when a signal comes within `start`
        local._end_workers()
    assert not psutil.pid_exists(process.pid)
    process.join()


def lack_memory() -> None:
    raise MemoryError


def test_a_worker_that_lacks_memory_says_so_in_one_line(capfd):
    ended = local.Local(2).run_workers(lack_memory, (), 2, here=lambda: iter(()), lost=lambda _: None)  # type: ignore[arg-type]
    assert ended == ["exit code 2"] * 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith("frostline: There is not enough memory.") for line in said)
