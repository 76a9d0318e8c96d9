"""The plan: what every stage will store and take, from counts, budget and measured paces. Pure."""

from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from frostline.params import Params
from frostline.planning.notes import describe_reach, describe_storage
from frostline.planning.pace import Counts, Facts, Pace, count_trained
from frostline.planning.reuse import Fresh
from frostline.planning.storage import Storage, fit_views, flips, plan_storage, view_bytes
from frostline.search.study import expect_epochs

MODELS = 2  # that `evaluate` asks
BESIDE = 400  # images that it asks the final model besides: strangers, and for its speed
FIGURES = 10  # seconds to draw those of `evaluate`, about
RECEIPTS = 2  # checks of a study, each compiles about what the deepest tail does


@dataclass(frozen=True)
class Step:
    """One stage: what it does, bytes that it leaves on disk, seconds that it takes."""

    stage: str
    what: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The steps, what is stored, and what a user should be told."""

    steps: list[Step]
    storage: Storage
    notes: list[str]

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    def to_record(self) -> dict[str, Any]:
        storage = {"views": self.storage.views, "stored": self.storage.stored, "bytes": self.storage.bytes}
        return {"steps": [asdict(step) for step in self.steps], "storage": storage, "notes": self.notes}


def make_plan(
    params: Params, counts: Counts, facts: Facts, pace: Pace, cores: int, pool_from: int, fresh: Fresh | None = None
) -> Plan:
    """The plan for these params.

    cores: of this machine; pool_from: bytes of views from which `augment` uses all of them; fresh: what share of the rows is
    not here yet, all where it is None.
    """
    fresh = fresh or Fresh()
    size, budget = params.base.image_size, params.storage.budget_gb
    trained, plain = count_trained(params.refit, counts)
    views = fit_views(trained, size, params.augment.views, budget)
    storage = plan_storage(
        facts.row_bytes,
        facts.pooled_bytes,
        facts.prefix_flops,
        trained,
        plain,
        views,
        size,
        budget,
        mirrored=flips(params.augment),
    )
    steps = [
        _prepare(counts, size, pace, cores, fresh.images),
        _augment(trained, views, size, pace, cores, pool_from, fresh.views),
        _extract(trained, plain, storage, pace, flips(params.augment), fresh.features),
        *_training(params, counts, facts, storage, pace),
        *_reporting(counts, pace, flips(params.augment)),
    ]
    return Plan(steps, storage, _notes(params, counts, facts, storage))


def _prepare(counts: Counts, size: int, pace: Pace, cores: int, fresh: float) -> Step:
    bytes_ = view_bytes(counts.train + counts.val + counts.test, size)
    decoded = fresh * counts.files
    seconds = pace.start["prepare"] + decoded * pace.decode / cores + 2 * bytes_ * pace.disk  # shards, then splits
    return Step("prepare", f"{_new(decoded, counts.files)} files decoded to {size} px", bytes_, seconds)


def _new(number: float, total: int) -> str:
    """How many of all have to be made."""
    return f"{total}" if round(number) == total else f"{round(number)} new of {total}"


def _augment(trained: int, views: int, size: int, pace: Pace, cores: int, pool_from: int, fresh: float) -> Step:
    rows = trained * (views - 1)
    bytes_, drawn = view_bytes(rows, size), fresh * rows
    # The processes of a pool load the libraries again, all at once.
    work = drawn * pace.augment / cores + pace.start["augment"] if bytes_ >= pool_from else drawn * pace.augment
    what = f"{views} views of {trained} images, the plain one among them"
    what += f"; {_new(drawn, rows)} to draw" if round(drawn) < rows else ""
    return Step("augment", what, bytes_, pace.start["augment"] + work + bytes_ * pace.disk)


def _extract(trained: int, plain: int, storage: Storage, pace: Pace, mirrored: bool, fresh: float) -> Step:
    images = trained * storage.views + plain + mirrored * (trained + plain)
    passed = fresh * images
    seconds = pace.start["extract"] + pace.build + passed * pace.prefix + storage.total * pace.disk
    stored = ", ".join(f"{depth} ({storage.bytes[depth] / 1e6:.0f} MB)" for depth in storage.stored)
    what = f"{_new(passed, images)} images through the frozen prefix; every cut pooled ({storage.pooled / 1e6:.0f} MB)"
    what += f"; depths stored: {stored}" if stored else ""
    return Step("extract", what, storage.total, seconds)


def _training(params: Params, counts: Counts, facts: Facts, storage: Storage, pace: Pace) -> list[Step]:
    tune, first = params.tune, params.tune.space.unfrozen_blocks[0]  # the last may be a word; `pace` knows it
    depths = [depth for depth in pace.tails if depth >= first]
    epoch = {depth: _epoch_seconds(depth, counts, facts, storage, pace) for depth in pace.tails}
    shapes = len(tune.space.optimizer) * len(tune.space.head_units)
    traces = {depth: tail.trace for depth, tail in pace.tails.items()}
    deepest = max(pace.tails)
    start = pace.start["tune"] + RECEIPTS * traces[deepest]
    epochs = expect_epochs(tune)
    searched = epochs * mean(epoch[depth] for depth in depths)
    refit = params.refit
    # Each fold trains on all images but its own share; a candidate's tail is compiled once, in a process of its own.
    share = (refit.folds - 1) / refit.folds * sum(count_trained(params.refit, counts)) / max(counts.train, 1)
    trained = refit.candidates * (
        refit.folds * share * tune.epochs * mean(epoch[depth] for depth in depths) + mean(traces.values())
    )
    trials = f"{tune.num_trials} trials, {epochs:.0f} epochs in all, evenly over depths {depths[0]} to {deepest}"
    return [
        Step("tune", trials, 0, start + shapes * sum(traces.values()) + searched),
        Step("refit", f"{refit.candidates} best trials, {refit.folds} folds each", 0, pace.start["refit"] + trained),
    ]


def _reporting(counts: Counts, pace: Pace, mirrored: bool) -> list[Step]:
    # The final model and that of both baselines; each is built, compiled, and asked for the mirror image, too.
    asked = (MODELS * counts.test + BESIDE) * (1 + mirrored)
    evaluated = pace.start["refit"] + MODELS * pace.build + asked * pace.prefix + FIGURES
    return [
        Step("evaluate", f"{counts.test} images through {MODELS} models, figures", 0, evaluated),
        Step("register", "run and version in MLflow", 0, pace.start["augment"] + FIGURES / 2),
    ]


def _epoch_seconds(depth: int, counts: Counts, facts: Facts, storage: Storage, pace: Pace) -> float:
    tail, flops = pace.tails[depth], facts.prefix_flops
    # Blocks between the cut that is stored and this one run at about the prefix's own pace.
    between = pace.prefix * (flops[depth] - flops[storage.sources.get(depth, depth)]) / max(flops[0], 1)
    return counts.train * (tail.train + between) + counts.val * (tail.validate + between)


def _notes(params: Params, counts: Counts, facts: Facts, storage: Storage) -> list[str]:
    notes = describe_reach(facts.reach) if facts.reach else []
    notes += describe_storage(storage, params.augment.views, params.storage.budget_gb)
    notes.append(f"The prefix computes in {facts.precision}: {facts.reason}.")
    if params.tune.pruning != "none":
        notes.append(f"tune: if pruning ({params.tune.pruning}) ends half of the trials that it judges at each rung.")
    if not counts.prepared:
        notes.append("Counts are by the shares of `prepare`, before duplicates and unreadable files are left out.")
    return notes
