"""What a search makes of deep trials: what its pruner loses, what trials are best judged by, and whether rates should fall with depth.

    python benchmarks/depths.py [--shared ../shared] [--tasks lite0@96:cats:50 ...] [--seeds 5] [--out FILE]
    python benchmarks/depths.py --table FILE [--write]

A seed draws a project's images anew; TRIALS trials, two linear heads among them, over depths 0 to DEEPEST, epochs and space as in the
default preset. A trial that the median pruner stops is told to be stopped, so that the search goes on as it would, but is
trained to its end beside it. Each search is run twice: with suffix rates as drawn, and with the range's upper end divided by the depth.

What each way to choose the best trial would choose is cross-fitted as `refit` does, with the linear heads: log loss out of fold,
and of the final model on test images that nothing else has seen.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from learning import BASES, FOLDS, load_images, make_params
from numpy.typing import NDArray
from results import Lines, add_options, draw_table, keep, load_lines
from scipy import stats
from workloads import TRANSFORMS

TASKS = ("v2-0.35@96:cats:100", "lite0@96:generated:30", "v2-0.35@96:horses:50", "lite0@96:cats:50")
TRIALS, EPOCHS, VIEWS, DEEPEST = 16, 6, 6, 8
VAL_SHARE = 0.2
DRAWN, CAPPED = "as drawn", "over depth"  # the upper end of the range of suffix rates
TABLES = ("pruning", "judging", "rates")
Array = NDArray[Any]
Trial = Mapping[str, Any]
Failed = list[tuple[int, float | None]]  # depth and suffix rate

if TYPE_CHECKING:
    from optuna.trial import Trial as Asked

    from frostline.evidence.trials import TrialRecord
    from frostline.hparams import Hparams


def _late(curve: list[float]) -> float:
    return float(np.mean(curve[-3:]))


# Higher is better. The first is what the product does: the best epoch's accuracy, then its loss.
RULES: dict[str, Callable[[Trial], Any]] = {
    "accuracy, best epoch": lambda trial: max(zip(trial["accuracy"], (-loss for loss in trial["loss"]), strict=True)),
    "accuracy, last epoch": lambda trial: (trial["accuracy"][-1], -trial["loss"][-1]),
    "accuracy, mean of the last three": lambda trial: (_late(trial["accuracy"]), -_late(trial["loss"])),
    "log loss, best epoch": lambda trial: -min(trial["loss"]),
    "log loss, last epoch": lambda trial: -trial["loss"][-1],
    "log loss, mean of the last three": lambda trial: -_late(trial["loss"]),
}
USED = next(iter(RULES))
WHOLE = "nothing pruned"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="BASE:SET:IMAGES_PER_CLASS")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path("depths.jsonl"), help="a line per search; goes on where it ended"
    )
    parser.add_argument("--table", type=Path, help="only make the tables of such a file")
    add_options(parser)
    given = parser.parse_args()
    if given.table is None:
        measure(given)
    searches = load_lines(given.table or given.out)
    for name, make in zip(TABLES, (list_pruned, list_judged, list_rates), strict=True):
        lines = make(searches)
        print(f"{make_table(lines)}\n")
        keep(f"depths-{name}", lines, given, make_table)


def measure(given: argparse.Namespace) -> None:
    out, shared = given.out.resolve(), given.shared.resolve()
    known = load_lines(out) if out.is_file() else []
    done = {(line["task"], line["seed"], line["rates"]) for line in known}
    for task in given.tasks:
        with TemporaryDirectory() as folder, contextlib.chdir(folder):
            project = None
            for seed in range(given.seeds):
                if (task, seed, CAPPED) in done:
                    continue
                project = project or Project(task, shared)
                started = time.monotonic()
                lines = list(project.look(seed))
                with out.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
                print(task, seed, f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


class Project:
    """One set of images, through the frozen prefix once, and one bench for all draws of it."""

    def __init__(self, task: str, shared: Path) -> None:
        from frostline.bases.files import fetch_weights
        from frostline.params import parse_params
        from frostline.training.bench import Bench

        self.task = task
        base, kind, number = task.split(":")
        self.per_class = int(number)
        family, options, weights, size = BASES[base]
        weights = weights if weights == "package" else str(shared / weights)
        document = make_params({"name": family, "options": options, "image_size": size, "weights": weights})
        document["augment"]["views"] = VIEWS
        document["tune"] |= {"num_trials": TRIALS, "epochs": EPOCHS}
        document["tune"]["space"]["unfrozen_blocks"] = [0, DEEPEST]
        self.params = parse_params(document, "depths.py")
        fetch_weights(self.params.base, Path("base"), 7)
        pool, test = load_images(shared, kind, size, self.per_class)
        pool = [images[: 2 * self.per_class] for images in pool]  # a seed draws half of it
        self.truth = np.concatenate([_label(pool), _label(test)])
        self.images, self.num_pool = np.concatenate([*pool, *test]), sum(map(len, pool))
        self.bench = Bench(self.params, len(pool), {})
        self.extract()

    def extract(self) -> None:
        """Views of the pool, and features of pool and test images, of which each draw takes its rows."""
        from frostline.arrays import load_split, save_split
        from frostline.bases.extraction import Extractor, list_sources
        from frostline.images.views import Drawing, save_views

        places = np.split(np.arange(len(self.truth)), [self.num_pool])
        for part, rows in zip(("pool", "test"), places, strict=True):
            images = self.images[rows]
            save_split(Path("all") / part, [images], images.shape[1], self.truth[rows], [f"{row}" for row in rows])
        pool, test = (load_split(Path("all") / part) for part in ("pool", "test"))
        drawing = Drawing((Path("all/pool/images.npy"),), pool.digests, TRANSFORMS, 7)
        list(save_views(drawing, Path("views"), num_views=VIEWS, workers=1))
        extractor = Extractor(self.bench.base, list(range(1, DEEPEST + 1)), 64)
        list(extractor.save(list_sources(pool, test, Path("views"), VIEWS, mirrored=True), Path("all/features")))

    def look(self, seed: int) -> Iterator[dict[str, Any]]:
        """A line for the search with rates as drawn, and for that with the capped range."""
        from frostline.training.bench import fit_shared_heads

        self.store(seed)
        self.bench.params = self.params.model_copy(update={"seed": seed})
        self.bench._data.clear()
        self.bench.__dict__.pop("rows", None)
        self.bench.heads = fit_shared_heads(self.bench)
        searches = {}
        for rates in (DRAWN, CAPPED):
            with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                searches[rates] = self.search(Path(folder), rates)
        judge = Judge(self, seed)
        for rates, (records, trials, failed) in searches.items():
            chosen = {name: _choose(trials, rule) for name, rule in RULES.items()} if rates == DRAWN else {}
            chosen |= {USED: _choose(trials, RULES[USED]), WHOLE: _choose(trials, RULES[USED], pruned=True)}
            yield {
                "task": self.task,
                "seed": seed,
                "rates": rates,
                "num_classes": self.bench.num_classes,
                "head": max(trial.score for trial in records[:2] if trial.score is not None),
                "trials": trials,
                "failed": failed,
                "judged": {name: judge.look(records, number, rates) for name, number in chosen.items()},
            }

    def store(self, seed: int) -> None:
        """The rows of a draw as the stages would leave them; test images are of val, and left out of all."""
        from frostline.arrays import ALL, GROUPS, LEFT_OUT, USE, load_array, save_array, save_split
        from frostline.bases.features import MIRROR, PLAIN
        from frostline.files import mark_complete

        rng = np.random.default_rng([7, seed])
        train, val, num_val = [], [], round(VAL_SHARE * self.per_class)
        for label in range(self.bench.num_classes):
            rows = rng.permutation(np.flatnonzero(self.truth[: self.num_pool] == label))[: self.per_class]
            train.append(rows[num_val:])
            val.append(rows[:num_val])
        test = np.arange(self.num_pool, len(self.truth))
        parts = {"train": np.sort(np.concatenate(train)), "val": np.concatenate([np.sort(np.concatenate(val)), test])}
        for folder in ("prepared", "features"):
            shutil.rmtree(folder, ignore_errors=True)
        for split, rows in parts.items():
            images = self.images[rows]
            save_split(
                Path("prepared") / split, [images], images.shape[1], self.truth[rows], [f"{row}" for row in rows]
            )
        counts = {"train": len(parts["train"]), "val": len(parts["val"]), "test": 0}
        mark_complete(Path("prepared"), num_images=counts)
        every = np.concatenate([*parts.values()])
        drawn = every[every < self.num_pool]
        for file in [*Path("all/features").glob("depth-*/*.npy"), *Path("all/features").glob("pooled/*.npy")]:
            rows = load_array(file)[every if file.stem in (PLAIN, MIRROR) else drawn]
            save_array(Path("features") / file.relative_to("all/features"), [rows], rows.shape, rows.dtype)
        use = np.where(every < self.num_pool, ALL, LEFT_OUT).astype(np.uint8)
        save_array(Path("features") / USE, [use], use.shape, np.uint8)
        save_array(Path("features") / GROUPS, [np.arange(len(every))], every.shape, np.int64)
        depths = list(range(1, DEEPEST + 1))
        mark_complete(Path("features"), stored=depths, depths=depths, num_images=len(drawn), views=VIEWS)
        self.drawn, self.labels, self.tested = every, self.truth[every], np.flatnonzero(use == LEFT_OUT)

    def search(self, folder: Path, rates: str) -> "tuple[list[TrialRecord], list[dict[str, Any]], Failed]":
        """The records of a search, what its trials came to at their end, also those that it had stopped, and the diverged ones."""
        from frostline.search.places import StudyFile
        from frostline.search.space import list_baselines
        from frostline.search.study import draw, finish, list_rungs, open_study
        from frostline.search.trial import run_baseline, run_trial

        params, tune = self.bench.params, self.bench.params.tune
        place = open_study(StudyFile(folder / "study.db", "study"), "code", "ask")
        study, rungs, baselines = place.load(), list_rungs(tune)[:-1], list_baselines(tune.space, tune.pooling)
        records: list[TrialRecord] = []
        trials: list[dict[str, Any]] = []
        failed: Failed = []
        while asked := draw(place, study, tune, params.seed):
            trial, number = asked
            stopped: list[int] = []

            def note(best: float, epoch: int, trial: Any = trial, stopped: list[int] = stopped) -> bool:
                if epoch in rungs and not stopped:
                    trial.report(best, epoch)
                    stopped += [epoch] if trial.should_prune() else []
                return False

            if number < len(baselines):
                record = run_baseline(self.bench, baselines[number], number)
            else:
                record = run_trial(self.bench, suggest(trial, tune.space, rates), number, should_stop=note)
            if record.state == "FAIL":
                failed.append((record.depth, record.hparams.suffix_learning_rate))
            elif record.epochs:
                trials.append(
                    {
                        "number": number,
                        "depth": record.depth,
                        "rate": record.hparams.suffix_learning_rate,
                        "stopped": stopped[0] if stopped else None,
                        "accuracy": [round(value, 5) for value in record.curves["val_accuracy"]],
                        "loss": [round(value, 5) for value in record.curves["val_loss"]],
                    }
                )
            finish(place, trial, cut(record, stopped[0]) if stopped and record.state != "FAIL" else record)
            records.append(record)
        return records, trials, failed


def suggest(trial: "Asked", space: Any, rates: str) -> "Hparams":
    """What a trial tries, with the range of suffix rates as it is or ending at its upper end over the depth."""
    from frostline.search.space import suggest as draw_all

    depth = trial.suggest_int("unfrozen_blocks", *space.unfrozen_blocks)
    if rates == CAPPED and depth:
        known = space.suffix_learning_rate
        high = max(known.low, known.high / depth)
        space = space.model_copy(update={"suffix_learning_rate": known.model_copy(update={"high": high})})
    return draw_all(trial, space)


def cut(record: "TrialRecord", epochs: int) -> "TrialRecord":
    """The record as it would be had the trial ended after so many epochs."""
    curves = {name: curve[:epochs] for name, curve in record.curves.items()}
    best = max(range(epochs), key=lambda place: (curves["val_accuracy"][place], -curves["val_loss"][place]))
    facts: dict[str, Any] = {
        "score": curves["val_accuracy"][best],
        "val_loss": curves["val_loss"][best],
        "best_epoch": best + 1,
    }
    return replace(record, state="PRUNED", curves=curves, epochs=epochs, **facts)


class Judge:
    """What `refit` makes of a trial of one draw; each is cross-fitted once."""

    def __init__(self, project: Project, seed: int) -> None:
        from frostline.seeding import derive_seed
        from frostline.training.bench import fit_heads
        from frostline.training.data import draw_folds
        from frostline.training.refit import BARE, EVERY_CUT, cross_fit_head

        self.project, bench = project, project.bench
        self.rows = bench.rows.both
        self.labels = project.labels[self.rows]
        folds = self.folds = draw_folds(self.labels, self.rows, FOLDS, derive_seed(seed, "refit"))
        self.linear = bench.heads = fit_heads(bench, ("last", "all"), self.rows, folds)
        self.heads = {
            sees: cross_fit_head(bench, sees, name, self.rows, folds)
            for sees, name in (("last", BARE), ("all", EVERY_CUT))
        }
        self.known: dict[tuple[str, int], dict[str, Any]] = {}

    def look(self, records: "list[TrialRecord]", number: int, rates: str) -> dict[str, Any]:
        """Log losses, in nats: of the final model out of fold and on test images, and of the trial's tails alone out of fold."""
        if (rates, number) not in self.known:
            self.known[rates, number] = {"number": number, **self.fit(records[number])}
        return self.known[rates, number]

    def fit(self, trial: "TrialRecord") -> dict[str, Any]:
        from frostline.evidence.calibration import apply_temperature
        from frostline.training.refit import answer_of_parts, choose, cross_fit_trial, log_loss, make_members

        bench, tested = self.project.bench, self.project.tested
        bench.heads = self.linear
        with TemporaryDirectory() as work:
            try:
                tails = [cross_fit_trial(bench, trial, self.rows, self.folds, Path(work))]
            except FloatingPointError:  # left out, as `refit` does
                tails = []
            choice = choose(self.labels, self.heads, tails, [False, True])
            members = make_members(bench, choice, "mean", self.rows, Path(work))
            mirrors = [False, True] if choice.mirrored else [False]
            answers = np.mean([answer_of_parts(bench, members, tested, mirror) for mirror in mirrors], axis=0)
        mixed = apply_temperature(choice.probabilities, choice.temperature)
        return {
            "out_of_fold": log_loss(self.labels, mixed),
            "test": log_loss(self.project.labels[tested], apply_temperature(answers, choice.temperature)),
            "tails": log_loss(self.labels, tails[0].plain) if tails else None,
            "share": choice.share,
        }


def _label(images: list[Any]) -> Array:
    return np.repeat(np.arange(len(images), dtype=np.int32), [len(each) for each in images])


def _choose(trials: list[dict[str, Any]], rule: Callable[[Trial], Any], *, pruned: bool = False) -> int:
    """The number of the trial that a rule puts first; pruned: may one be chosen that the search had stopped?"""
    number: int = max((t for t in trials if pruned or t["stopped"] is None), key=rule)["number"]
    return number


def list_pruned(searches: Lines) -> Lines:
    """A line for each depth: what became of its trials once they were run to their end, with rates as drawn."""
    found: dict[int, dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    for search in searches:
        if search["rates"] != DRAWN:
            continue
        rule = RULES[USED]
        best = max(rule(trial) for trial in search["trials"] if trial["stopped"] is None)
        for trial in search["trials"]:
            own = found[trial["depth"]]
            own["trials"] += 1
            own["pruned"] += trial["stopped"] is not None
            own["lost"] += trial["stopped"] is not None and rule(trial) > best
            own["wins"] += trial["number"] == search["judged"][WHOLE]["number"]
    judged = [search["judged"] for search in searches if search["rates"] == DRAWN]
    ratios = {kind: [each[WHOLE][kind] / each[USED][kind] for each in judged] for kind in ("out_of_fold", "test")}
    lost = sum(each[WHOLE]["number"] != each[USED]["number"] for each in judged)
    return [
        {"table": "pruning", "searches": len(judged), "lost": lost, "ratios": ratios},
        *({"table": "pruning", "depth": depth, **found[depth]} for depth in sorted(found)),
    ]


def list_judged(searches: Lines) -> Lines:
    """A line for each search: the log losses of what each rule would have chosen."""
    return [
        {"table": "judging", "task": search["task"], "seed": search["seed"]}
        | {kind: {name: search["judged"][name][kind] for name in RULES} for kind in ("test", "out_of_fold")}
        for search in searches
        if search["rates"] == DRAWN
    ]


def list_rates(searches: Lines) -> Lines:
    """A line for each search: how many of its unfrozen trials collapsed, and the log losses of its best."""
    lines = []
    for search in searches:
        deep = [trial for trial in search["trials"] if trial["depth"]]
        limit = (search["head"] + 1 / search["num_classes"]) / 2  # as search/trial lines tell it
        fallen = [trial for trial in deep if trial["accuracy"][-1] < limit]
        lines.append(
            {"table": "rates", "task": search["task"], "seed": search["seed"], "rates": search["rates"]}
            | {"unfrozen": len(deep) + len(search["failed"])}
            | {"collapsed": [*([trial["depth"], trial["rate"]] for trial in fallen), *search["failed"]]}
            | {kind: search["judged"][USED][kind] for kind in ("test", "out_of_fold", "tails")}
        )
    return lines


def make_table(lines: Lines) -> str:
    """The table of one of TABLES."""
    made: str = {"pruning": tell_pruned, "judging": tell_judged, "rates": tell_rates}[lines[0]["table"]](lines)
    return made


def tell_pruned(lines: Lines) -> str:
    whole, *depths = lines
    rows = [[line["depth"], line["trials"], line["pruned"], line["lost"], line["wins"]] for line in depths]
    rows.append(["all", *(sum(line[key] for line in depths) for key in ("trials", "pruned", "lost", "wins"))])
    columns = [
        "depth",
        "trials",
        "pruned",
        "of these better at their end than the best that finished",
        "best of all, at their end",
    ]
    ratios = {kind: tell_ratio(each) for kind, each in whole["ratios"].items()}
    return (
        f"{draw_table(columns, rows)}\n\n{whole['lost']} of {whole['searches']} searches lost their best trial. Log loss of the final "
        f"model had nothing been pruned, times that with pruning: {ratios['out_of_fold']} out of fold, {ratios['test']} on test"
    )


def tell_judged(lines: Lines) -> str:
    rows = [
        [
            name,
            *(tell_ratio([line[kind][name] / line[kind][USED] for line in lines]) for kind in ("test", "out_of_fold")),
            *(f"{np.mean([line['test'][name] for line in own]):.4f}" for own in _by_task(lines).values()),
        ]
        for name in RULES
    ]
    columns = ["judged by", "log loss on test, times that of the first", "out of fold, likewise"]
    return draw_table([*columns, *(f"{task}, test" for task in _by_task(lines))], rows)


def tell_rates(lines: Lines) -> str:
    pairs = {(line["task"], line["seed"], line["rates"]): line for line in lines}
    rows = []
    for task, own in [*_by_task(lines).items(), ("all", lines)]:
        row: list[Any] = [task]
        for rates in (DRAWN, CAPPED):
            these = [line for line in own if line["rates"] == rates]
            fallen, deep = sum(len(line["collapsed"]) for line in these), sum(line["unfrozen"] for line in these)
            row.append(f"{fallen} of {deep}")
        for kind in ("tails", "out_of_fold", "test"):
            row.append(
                tell_ratio(
                    [
                        pairs[line["task"], line["seed"], CAPPED][kind] / line[kind]
                        for line in own
                        if line["rates"] == DRAWN
                    ]
                )
            )
        rows.append(row)
    columns = ["", f"collapsed, rates {DRAWN}", f"collapsed, {CAPPED}", "log loss of the best tails out of fold, times"]
    return draw_table([*columns, "of the final model out of fold, times", "on test, times"], rows)


def _by_task(lines: Lines) -> dict[str, Lines]:
    groups: dict[str, Lines] = defaultdict(list)
    for line in lines:
        groups[line["task"]].append(line)
    return groups


def tell_ratio(ratios: list[float]) -> str:
    """The geometric mean with a 95 % t interval."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / np.sqrt(len(logs)) if len(logs) > 1 else np.nan
    low, middle, high = np.exp([np.mean(logs) - half, np.mean(logs), np.mean(logs) + half])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
