"""The search's processes: none is left behind, whatever their parent ends with."""

import multiprocessing
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest


@dataclass(frozen=True)
class BrokenJob:
    """In place of a Job: one of its workers ends early, the others stay, and its study cannot be asked."""

    folder: Path

    @property
    def study(self) -> "BrokenJob":
        return self

    def call(self, function: object) -> None:
        raise OSError("the study's disk is gone")


def end_or_stay(job: BrokenJob) -> None:
    with suppress(FileExistsError):
        (job.folder / "first").mkdir()
        os._exit(3)
    time.sleep(600)


def test_a_search_that_cannot_go_on_leaves_no_worker_to_wait_for(tmp_path, monkeypatch):
    from frostline.search import worker  # here, because the workers load this module, and that one loads Keras

    monkeypatch.setattr(worker, "_work_for_parent", end_or_stay)
    with pytest.raises(OSError, match="disk is gone"):
        worker._run_workers(BrokenJob(tmp_path), 2)  # type: ignore[arg-type]
    assert multiprocessing.active_children() == []  # the interpreter would wait for them


def test_a_worker_whose_start_was_broken_off_is_ended_too(monkeypatch):
    from frostline.search import worker

    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.process, "_children", set())  # as when a signal comes within `start`
        worker._end_workers()
    assert not psutil.pid_exists(process.pid)
    process.join()
