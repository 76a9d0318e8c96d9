"""How many trials a search on changed images needs where it begins with what the last one learnt, beside one from nothing.

    python benchmarks/starts.py [--shared ../shared] [--sets cats ...] [--changes added:0.02 ...] [--seeds 5] [--out FILE]
    python benchmarks/starts.py --table FILE [--write]

Each seed draws a project's images anew. After a change they are the same whatever the change was, and all labels are right;
before it some images were missing (`added`) or had another class's label (`relabelled`), in train and val alike. A study of
TRIALS trials, two linear heads among them, runs on the images before. On those after it runs one from nothing and one for each of
STARTS, which begins with the best trials of the first; all with one seed, as a project has it. Space, pruning, epochs and
views are the default preset's.

Judged is, after each trial, what `refit` would make of the study so far: the trial that ranks first, cross-fitted on train and val
and mixed with a linear head; the out-of-fold log loss of that.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from learning import BASES, DEPTH, FOLDS, load_images, make_params
from numpy.typing import NDArray
from results import Lines, add_options, draw_table, keep, load_lines
from scipy import stats
from workloads import TRANSFORMS

BASE = "v2-0.35@96"
SETS = {
    "cats": 150,
    "horses": 150,
    "generated": 40,
}  # images of each class after the change; half of those it draws from
CHANGES = ("added:0.02", "added:0.2", "relabelled:0.02", "relabelled:0.2")
STARTS = (1, 3, 5)
TRIALS, EPOCHS, VIEWS = 12, 6, 6
BASELINES = 2  # trials that are linear heads; the others are drawn
SHOWN = (0, 1, 3, 5, 10)  # drawn trials in the table
VAL_SHARE = 0.2
Array = NDArray[Any]

if TYPE_CHECKING:
    from frostline.evidence.trials import TrialRecord
    from frostline.training.bench import Bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=CHANGES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path("starts.jsonl"), help="a line per search; goes on where it ended"
    )
    parser.add_argument("--table", type=Path, help="only make the table of such a file")
    add_options(parser)
    given = parser.parse_args()
    if given.table is None:
        measure(given)
    lines = load_lines(given.table or given.out)
    print(make_table(lines))
    keep("starts", lines, given, make_table)


def measure(given: argparse.Namespace) -> None:
    out, shared = given.out.resolve(), given.shared.resolve()
    known = load_lines(out) if out.is_file() else []
    done = {(line["set"], line["seed"]) for line in known}
    for name in given.sets:
        with TemporaryDirectory() as folder, contextlib.chdir(folder):
            project = None
            for seed in range(given.seeds):
                if (name, seed) in done:
                    continue
                project = project or Project(name, shared)
                started = time.monotonic()
                lines = list(project.look(seed, given.changes))
                with out.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
                print(name, seed, f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class State:
    """A project's images at one time: rows of the pool that are in train and in val, and a label for each row of the pool."""

    train: Array
    val: Array
    labels: Array


class Project:
    """One set of images, through the frozen prefix once, and one bench for all its states."""

    def __init__(self, name: str, shared: Path) -> None:
        from frostline.bases.files import fetch_weights
        from frostline.params import parse_params
        from frostline.tracking.runs import open_study_run
        from frostline.tracking.store import open_store
        from frostline.training.bench import Bench

        self.name = name
        family, options, weights, size = BASES[BASE]
        weights = weights if weights == "package" else str(shared / weights)
        document = make_params({"name": family, "options": options, "image_size": size, "weights": weights})
        document["augment"]["views"] = VIEWS
        document["tune"] |= {"num_trials": TRIALS, "epochs": EPOCHS}
        self.params = parse_params(document, "starts.py")
        fetch_weights(self.params.base, Path("base"), 7)
        # A seed draws half of it.
        pool = [images[: 2 * SETS[name]] for images in load_images(shared, name, size, SETS[name])[0]]
        self.images = np.concatenate(pool)
        self.truth = np.repeat(np.arange(len(pool), dtype=np.int32), [len(images) for images in pool])
        self.bench = Bench(self.params, len(pool), {})
        self.extract()
        self.runs = open_store(self.params.tracking, Path.cwd())
        self.parent = open_study_run(self.runs, "starts", params={}, tags={})

    def extract(self) -> None:
        """Views and features of the whole pool, of which each state takes its rows."""
        from frostline.arrays import load_split, save_split
        from frostline.bases.extraction import Extractor, list_sources
        from frostline.images.views import Drawing, save_views

        places = np.array_split(np.arange(len(self.truth)), 2)
        for half, rows in zip(("train", "val"), places, strict=True):
            images = self.images[rows]
            save_split(Path("pool") / half, [images], images.shape[1], self.truth[rows], [f"{row}" for row in rows])
        train, val = (load_split(Path("pool") / half) for half in ("train", "val"))
        files = tuple(Path("pool") / half / "images.npy" for half in ("train", "val"))
        drawing = Drawing(files, np.concatenate([train.digests, val.digests]), TRANSFORMS, 7)
        list(save_views(drawing, Path("views"), num_views=VIEWS, workers=1))
        extractor = Extractor(self.bench.base, list(range(1, DEPTH + 1)), 64)
        list(extractor.save(list_sources(train, val, Path("views"), VIEWS, mirrored=True), Path("pool/features")))

    def look(self, seed: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """A line for the search from nothing, and for each change and count of starts."""
        changes = [(kind, float(share)) for kind, share in (name.split(":") for name in names)]
        after = self.draw(seed)
        for kind, share in changes:
            self.show(self.undo(after, kind, share, seed), seed)
            self.search(Path(f"studies-{seed}") / name_of(kind, share), "before", 0)
        self.show(after, seed)
        found = {("", 0.0, 0): self.search(Path(f"studies-{seed}/nothing"), "after", 0)}
        for kind, share in changes:
            for count in STARTS:
                before = Path(f"studies-{seed}") / name_of(kind, share)
                folder = shutil.copytree(before, before.with_name(f"{before.name}-{count}"))
                found[kind, share, count] = self.search(folder, "after", count)
        judge = Judge(self.bench, seed)
        for (kind, share, count), records in found.items():
            yield {
                "set": self.name,
                "seed": seed,
                "kind": kind,
                "share": share,
                "starts": count,
                "num_images": len(after.train) + len(after.val),
                "log_loss": [judge.look(records[:number]) for number in range(BASELINES, TRIALS + 1)],
                "epochs": sum(record.epochs for record in records),
            }

    def draw(self, seed: int) -> State:
        """The state after the change: of each class as many rows of the pool as SETS says, a fifth of them in val."""
        rng = np.random.default_rng([7, seed])
        number = SETS[self.name]
        rows = [
            rng.permutation(np.flatnonzero(self.truth == label))[:number] for label in range(self.bench.num_classes)
        ]
        num_val = round(VAL_SHARE * number)
        train, val = (
            np.sort(np.concatenate([each[part] for each in rows])) for part in (slice(num_val, None), slice(num_val))
        )
        return State(train, val, self.truth)

    def undo(self, after: State, kind: str, share: float, seed: int) -> State:
        """The state before the change, of which the images that changed are a share."""
        rng = np.random.default_rng([8, seed])
        rows = rng.permutation(np.concatenate([after.train, after.val]))
        if kind == "added":
            changed = rows[: round(len(rows) * share / (1 + share))]
            return State(np.setdiff1d(after.train, changed), np.setdiff1d(after.val, changed), after.labels)
        changed = rows[: round(len(rows) * share)]
        labels = after.labels.copy()
        labels[changed] = (
            labels[changed] + rng.integers(1, self.bench.num_classes, len(changed))
        ) % self.bench.num_classes
        return State(after.train, after.val, labels.astype(np.int32))

    def show(self, state: State, seed: int) -> None:
        """Puts a state before the bench."""
        from frostline.training.bench import fit_shared_heads

        self.store(state)
        self.bench.params = self.params.model_copy(update={"seed": seed})
        self.bench._data.clear()
        self.bench.heads = fit_shared_heads(self.bench)

    def store(self, state: State) -> None:
        """A state as the stages would leave it."""
        from frostline.arrays import load_array, save_array, save_split
        from frostline.files import mark_complete

        for folder in ("prepared", "features"):
            shutil.rmtree(folder, ignore_errors=True)
        for split, rows in (("train", state.train), ("val", state.val)):
            images = self.images[rows]
            ids = [f"{row}" for row in rows]
            save_split(Path("prepared") / split, [images], images.shape[1], state.labels[rows], ids)
        mark_complete(Path("prepared"), num_images={"train": len(state.train), "val": len(state.val), "test": 0})
        rows = np.concatenate([state.train, state.val])
        pool = Path("pool/features")
        for file in [*pool.glob("depth-*/*.npy"), *pool.glob("pooled/*.npy")]:
            chosen = load_array(file)[rows]
            save_array(Path("features") / file.relative_to(pool), [chosen], chosen.shape, chosen.dtype)
        depths = list(range(1, DEPTH + 1))
        mark_complete(Path("features"), stored=depths, depths=depths, num_images=len(rows), views=VIEWS)

    def search(self, folder: Path, digest: str, count: int) -> "list[TrialRecord]":
        """The trials of a study on what is stored, begun with the best `count` trials of the study in the same folder."""
        from frostline.search.starts import begin_study
        from frostline.search.study import list_records
        from frostline.search.worker import Job, run_trials

        bench = self.bench
        params = bench.params.model_copy(update={"tune": self.params.tune.model_copy(update={"start_from": count})})
        names = tuple(f"{label}" for label in range(bench.num_classes))
        with contextlib.redirect_stdout(io.StringIO()):
            study = begin_study(folder, digest, "code", params)
            run_trials(Job(params, study, self.runs, self.parent, names, bench.heads), bench)
        return list_records(study.load(), TRIALS)


class Judge:
    """What `refit` would make of a search on what is stored: out-of-fold log loss. Each trial is cross-fitted once."""

    def __init__(self, bench: "Bench", seed: int) -> None:
        from frostline.seeding import derive_seed
        from frostline.training.bench import fit_heads
        from frostline.training.data import draw_folds
        from frostline.training.refit import BARE, EVERY_CUT, cross_fit_head

        self.bench, self.labels = bench, bench.data(0, "all").labels
        self.rows = np.arange(len(self.labels))
        self.folds = draw_folds(self.labels, self.rows, FOLDS, derive_seed(seed, "refit"))
        bench.heads = fit_heads(bench, ("last", "all"), self.rows, self.folds)
        self.heads = {
            sees: cross_fit_head(bench, sees, name, self.rows, self.folds)
            for sees, name in (("last", BARE), ("all", EVERY_CUT))
        }
        self.known: dict[tuple[Any, ...], float] = {}

    def look(self, records: "list[TrialRecord]") -> float:
        """The out-of-fold log loss of the final model after these trials, in nats."""
        from frostline.evidence.ranking import list_candidates

        best = list_candidates(records, 1)
        # What a trial draws by chance depends on its number.
        key = tuple((trial.number, trial.hparams) for trial in best)
        if key not in self.known:
            self.known[key] = self.fit(best)
        return self.known[key]

    def fit(self, best: "list[TrialRecord]") -> float:
        from frostline.evidence.calibration import apply_temperature
        from frostline.training.refit import choose, cross_fit_trial, log_loss

        with TemporaryDirectory() as work:
            try:
                tails = [cross_fit_trial(self.bench, trial, self.rows, self.folds, Path(work)) for trial in best]
            except FloatingPointError:  # left out, as `refit` does
                tails = []
        choice = choose(self.labels, self.heads, tails, [False, True])
        return log_loss(self.labels, apply_temperature(choice.probabilities, choice.temperature))


def name_of(kind: str, share: float) -> str:
    return f"{kind}-{round(100 * share)}"


def make_table(lines: Lines) -> str:
    """The loss after so many drawn trials beside that from nothing after all, by change; then what each set needed."""
    ways: dict[tuple[str, float, int], Lines] = defaultdict(list)
    for line in lines:
        ways[line["kind"], line["share"], line["starts"]].append(line)
    nothing = ways["", 0.0, 0]
    ends = {(line["set"], line["seed"]): line["log_loss"][-1] for line in nothing}
    means, needs = [], []
    for kind, share in dict.fromkeys(way[:2] for way in ways if way[2]):
        own = [nothing, *(ways[kind, share, count] for count in STARTS)]
        for drawn in SHOWN:
            means.append([f"{share:.0%} {kind}, {drawn} drawn", *(compare(each, ends, drawn) for each in own)])
        for name in dict.fromkeys(line["set"] for line in lines):
            of_set = [[line for line in each if line["set"] == name] for each in own]
            needs.append([f"{share:.0%} {kind}, {name}", *(count_drawn(each, ends) for each in of_set)])
    columns = ["from nothing", *(f"best {count}" for count in STARTS)]
    first = draw_table(["log loss, times that from nothing after all", *columns], means)
    return f"{first}\n\n{draw_table(['drawn trials needed', *columns], needs)}"


def compare(own: Lines, ends: dict[tuple[str, int], float], drawn: int) -> str:
    """The geometric mean of the loss after so many drawn trials over that of the search from nothing at its end, with a 95 % t
    interval over sets and seeds."""
    logs = [np.log(line["log_loss"][drawn] / ends[line["set"], line["seed"]]) for line in own]
    half = stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / np.sqrt(len(logs))
    low, middle, high = np.exp([np.mean(logs) - half, np.mean(logs), np.mean(logs) + half])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def count_drawn(own: Lines, ends: dict[tuple[str, int], float]) -> str:
    """The median over seeds of the drawn trials after which the loss was first no higher than that from nothing at its end, with
    the fewest and the most, and the mean loss at the end; "–" stands for never."""
    needed = []
    for line in own:
        end = ends[line["set"], line["seed"]]
        needed.append(next((drawn for drawn, loss in enumerate(line["log_loss"]) if loss <= end), np.inf))
    found = np.quantile(needed, [0.5, 0, 1], method="higher")
    middle, lowest, highest = ("–" if np.isinf(each) else f"{each:g}" for each in found)
    return f"{middle} ({lowest} to {highest}); {np.mean([line['log_loss'][-1] for line in own]):.4f}"


if __name__ == "__main__":
    main()
