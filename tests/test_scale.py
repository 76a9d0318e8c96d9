"""The seam between a stage and where it runs; engine local, and what is refused. Engine ray: test_ray.py."""

import os
import pickle
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from frostline.arrays import JoinedRows, load_array, save_array, take_rows
from frostline.errors import Refused
from frostline.params import Scale, parse_params
from frostline.planning.checks import check_scale, find_problems
from frostline.scale import engines
from frostline.scale.engines import open_engine
from frostline.scale.local import HERE, Local
from frostline.scale.work import Work


def begin(step: int) -> int:
    return step


def count(step: int, number: int) -> Iterator[tuple[int, int]]:
    """Two pieces: the number, and the next one by the step that the process keeps."""
    time.sleep(0.02 * (number % 3))
    yield number, os.getpid()
    yield number + step, os.getpid()


def add_ten(piece: tuple[int, int], number: int) -> tuple[int, int, int]:
    return piece[0] + 10, piece[1], os.getpid()


def fail_at_three(step: int, number: int) -> Iterator[int]:
    if number == 3:
        raise FloatingPointError("three")
    yield number


@pytest.mark.parametrize("how", [{}, {"threads": 3}, {"processes": 2}])
def test_pieces_come_in_the_order_of_their_tasks_and_are_kept_where_they_were_made(how: dict[str, int]) -> None:
    work = Work(count, begin, (100,), keep=add_ten)
    found = list(HERE.map(work, ((number,) for number in range(6)), ahead=4, **how))
    assert [number for number, *_ in found] == [each for number in range(6) for each in (number + 10, number + 110)]
    processes = {(made, kept) for _, made, kept in found}
    assert all(made == kept for made, kept in processes)
    assert ({made for made, _ in processes} == {os.getpid()}) == ("processes" not in how)


@pytest.mark.parametrize("how", [{}, {"threads": 2}])
def test_what_this_process_has_already_is_not_begun_again(how: dict[str, int]) -> None:
    work = Work(count, pytest.fail, here=lambda: 5)
    assert [number for number, _ in HERE.map(work, [(1,)], **how)] == [1, 6]


@pytest.mark.parametrize("how", [{}, {"threads": 2}, {"processes": 1}])
def test_an_error_of_a_task_is_raised_as_it_is(how: dict[str, int]) -> None:
    done = HERE.map(Work(fail_at_three, begin, (0,)), [(number,) for number in range(5)], ahead=2, **how)
    with pytest.raises(FloatingPointError, match="three"):
        list(done)


def tell_gpu(folder: Path, number: int) -> Iterator[str]:
    (folder / f"{number}-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    yield "here"
    if number == 9:
        sys.exit(7)


def run_workers(folder: Path, workers: int, number: int, gpus: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The reasons returned and told, and the GPUs that the workers saw."""
    told: list[str] = []
    here = partial(tell_gpu, folder, 1)
    ended = Local(workers).run_workers(tell_gpu, (folder, number), workers, here=here, lost=told.append, gpus=gpus)
    return ended, told, sorted(file.read_text() for file in folder.iterdir())


def test_a_single_worker_is_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_workers(tmp_path, 1, 9, ["0", "1"])[:2] == ([], [])
    assert [file.name for file in tmp_path.iterdir()] == [f"1-{os.getpid()}"]
    assert capsys.readouterr().out == "here\n"


@pytest.mark.parametrize(
    ("before", "gpus", "seen"),
    [(None, ["0", "1", "2", "3"], ["0", "1", "2"]), ("4,5,6", ["4", "5", "6"], ["4", "5", "6"])],
)
def test_workers_have_a_gpu_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, gpus: list[str], seen: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    assert run_workers(tmp_path, 3, 1, gpus) == ([], [], seen)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


@pytest.mark.parametrize("gpus", [["0"], ["0", "1"]])
def test_workers_that_would_share_a_gpu_are_refused(tmp_path: Path, gpus: list[str]) -> None:
    with pytest.raises(Refused, match=rf"^tune.workers: 3 workers would share the memory of {len(gpus)} GPU"):
        run_workers(tmp_path, 3, 1, gpus)
    assert not list(tmp_path.iterdir())


def test_who_ends_early_is_told_with_the_reason(tmp_path: Path) -> None:
    ended, told, _ = run_workers(tmp_path, 2, 9, [])
    assert ended == told == ["exit code 7"] * 2


def end_after_the_first(folder: Path) -> Iterator[str]:
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        (folder / "second").write_text(str(os.getpid()))
        while not (folder / "told").exists():
            time.sleep(0.01)
    yield "here"
    sys.exit(7)


def test_who_ends_while_another_is_told_is_told_too(tmp_path: Path) -> None:
    told: list[str] = []

    def tell(reason: str) -> None:
        told.append(reason)
        while not (tmp_path / "second").exists() or not (number := (tmp_path / "second").read_text()):
            time.sleep(0.01)
        (tmp_path / "told").touch()
        if len(told) == 1:  # nobody has asked for its exit code yet
            second = psutil.Process(int(number))
            while second.is_running() and second.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)

    assert Local(2).run_workers(end_after_the_first, (tmp_path,), 2, here=iter, lost=tell) == told  # type: ignore[arg-type]
    assert told == ["exit code 7"] * 2


def test_joined_rows_are_sent_as_the_names_of_their_files(tmp_path: Path) -> None:
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    save_array(tmp_path / "images.npy", [images], images.shape, np.uint8)
    stored = load_array(tmp_path / "images.npy")
    for rows, is_named in (
        (JoinedRows(stored, stored, mirrored=True), True),
        (JoinedRows(stored[1:], images), False),  # neither is what the file holds
    ):
        sent = pickle.dumps(rows)
        assert (b"images.npy" in sent) == is_named
        again = pickle.loads(sent)
        np.testing.assert_array_equal(take_rows(again, slice(None)), take_rows(rows, slice(None)))
    # Files are opened there: what is sent is small, however many rows.
    assert len(pickle.dumps(JoinedRows(stored))) < 500


# --- what is refused --------------------------------------------------------------------------------------------------


def test_ray_that_is_not_installed_is_refused_in_a_sentence_that_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_ray", lambda: False)
    with (
        pytest.raises(Refused, match=r"^scale\.engine: ray needs .* Run `make env EXTRA=ray`\.$"),
        open_engine(SimpleNamespace(scale=Scale(engine="ray"))),  # type: ignore[arg-type]
    ):
        pass


def test_check_says_so_before_and_names_workers_of_the_other_engine(
    params_document: dict, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setattr("frostline.planning.checks.has_ray", lambda: False)
    document = params_document | {"scale": {"engine": "ray"}}
    assert [each for each in find_problems(document, root) if "EXTRA=ray" in each]
    document["tune"]["workers"] = 2
    params = parse_params(document)
    assert [problem.split(":")[0] for problem in check_scale(params.scale, params.tune)] == [
        "scale.engine",
        "tune.workers",
    ]
    assert check_scale(Scale(), params.tune) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpus": 0.5}, "would share its memory without a limit; given was 0.5"),
        ({"gpus": 2}, "has one GPU for itself, or none"),
        ({"address": "ray://head:10001"}, "not auto, nor host:port"),
        ({"address": "head"}, "not auto, nor host:port"),
        ({"workers": 0}, "scale.workers"),
        ({"cpus": 0.5}, "scale.cpus"),
        ({"engine": "dask"}, "allowed: local, ray"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(params_document: dict, given: dict, words: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_params(params_document | {"scale": given})
    assert words in str(caught.value)


def test_where_the_work_runs_is_no_input_of_a_stage(root: Path) -> None:
    assert "scale" not in (root / "dvc.yaml").read_text(encoding="utf-8")
