"""Many workers on one study: how much of their time is training, and what a trial costs besides.

The trainer is of known length: it sleeps, so that two cores can stand for many machines. All else is what a worker does: it draws the
trial from the study (`ask`, the sampler), logs its run to MLflow, keeps its record and ends it. Efficiency is the seconds of
training of all trials over workers x wall time, from when all workers are ready; how long that takes is told beside it.

The study is where FROSTLINE_STUDY_URL says, else in SQLite; MLflow's store where MLFLOW_TRACKING_URI says, else in SQLite.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import results

from frostline.evidence.trials import TrialRecord
from frostline.files import load_json, save_json
from frostline.params import Params, Scale, Tracking, load_params
from frostline.scale.engines import has_ray, open_engine
from frostline.search.places import Place, find_place
from frostline.search.space import list_baselines, suggest
from frostline.search.study import draw, finish, open_study
from frostline.tracking.runs import log_trial, open_study_run
from frostline.tracking.store import Store, open_store

TRIALS = {0.5: 12, 5.0: 8}  # seconds of a training -> trials of each worker
CURVES = {name: [0.5] * 6 for name in ("loss", "accuracy", "val_loss", "val_accuracy")}


def work(
    folder: Path, study: Place, store: Store, parent: str, params: Params, seconds: float, workers: int
) -> Iterator[str]:
    """Waits until so many workers are there, with study and MLflow client, and runs trials that train for `seconds` until none is left."""
    loaded, _ = study.load(), store.client
    (folder / f"ready-{os.getpid()}").touch()
    while len(list(folder.glob("ready-*"))) < workers:
        time.sleep(0.05)
    began, spent, tune = time.time(), [], params.tune
    baselines = list_baselines(tune.space, tune.pooling)
    while True:
        started = time.monotonic()
        if (asked := study.call(partial(draw, study, loaded, tune, params.seed))) is None:
            break
        trial, number = asked
        hparams = baselines[number] if number < len(baselines) else suggest(trial, tune.space)
        drawn = time.monotonic()
        time.sleep(seconds)
        trained = time.monotonic()
        score = 0.5 + hparams.dropout / 10
        record = TrialRecord(
            number, hparams, "COMPLETE", score, 0.5, 6, 6, CURVES, started=time.time() - seconds, seconds=seconds
        )
        run_id = log_trial(store, parent, record, tags={}, ended=time.time())
        assert run_id and study.call(partial(finish, study, trial, record))
        spent.append(time.monotonic() - trained + drawn - started)
    save_json(folder / f"done-{os.getpid()}.json", {"began": began, "ended": time.time(), "spent": spent})
    yield f"{len(spent)} trials"


def measure(params: Params, engine: str, workers: int, seconds: float) -> dict[str, Any]:
    """One study by so many workers."""
    number = TRIALS[seconds] * workers
    params = params.model_copy(
        update={"tune": params.tune.model_copy(update={"num_trials": number, "workers": workers})}
    )
    scale = Scale.model_validate({"engine": engine, "workers": workers})
    with tempfile.TemporaryDirectory() as place:
        folder, root = Path(place) / "workers", Path(place)
        folder.mkdir()
        store = open_store(Tracking(), root)
        study = open_study(find_place(root / "studies", f"scale-{time.time_ns()}", params), "code", "ask")
        parent = open_study_run(store, study.digest, params={}, tags={})
        facts = (folder, study, store, parent, params, seconds, workers)
        began = time.time()
        with open_engine(params.model_copy(update={"scale": scale})) as opened:
            lost: list[str] = []
            assert (
                not opened.run_workers(work, facts, workers, here=partial(work, *facts), lost=lost.append) and not lost
            )
        told = [load_json(file) for file in folder.glob("done-*.json")]
    spent = list(itertools.chain.from_iterable(each["spent"] for each in told))
    assert len(told) == workers and len(spent) == number
    wall = max(each["ended"] for each in told) - min(each["began"] for each in told)
    return {
        "engine": engine,
        "workers": workers,
        "seconds": seconds,
        "trials": number,
        "wall_s": wall,
        "efficiency": number * seconds / (workers * wall),
        "bookkeeping_s": sum(spent) / number,
        "start_s": min(each["began"] for each in told) - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument(
        "--engines", nargs="+", choices=["local", "ray"], default=["local", "ray"] if has_ray() else ["local"]
    )
    results.add_options(parser)
    given = parser.parse_args()
    params = load_params(results.ROOT / "presets" / "default.yaml")
    lines: results.Lines = []
    for engine, seconds, workers in itertools.product(given.engines, given.seconds, given.workers):
        lines.append(measure(params, engine, workers, seconds))
        print(lines[-1], flush=True)
    study = "postgresql" if os.environ.get("FROSTLINE_STUDY_URL") else "sqlite"
    results.keep(f"scale-{study}", lines, given, make_table)
    print(make_table(lines))


def make_table(lines: results.Lines) -> str:
    """Efficiency, and the seconds of a trial besides its training, of each number of workers."""
    columns = [
        "engine",
        "training, s",
        "workers",
        "trials",
        "efficiency",
        "a trial besides, s",
        "until all are ready, s",
    ]
    rows = [
        [
            line["engine"],
            line["seconds"],
            line["workers"],
            line["trials"],
            f"{line['efficiency']:.2f}",
            f"{line['bookkeeping_s']:.2f}",
            f"{line['start_s']:.0f}",
        ]
        for line in lines
    ]
    return results.draw_table(columns, rows)


if __name__ == "__main__":
    main()
