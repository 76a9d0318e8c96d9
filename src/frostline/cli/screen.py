"""`frostline screen`: which base, at which size, before anything is computed at length."""

import json
import math
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from frostline.errors import Refused, redact
from frostline.params import Base, Params, load_params

if TYPE_CHECKING:
    from frostline.planning.estimate import Plan
    from frostline.planning.pace import Counts
    from frostline.search.screening import Sample, Screened

OUT = Path("reports/screen")
SAMPLE = 1000  # images that are judged on
DEFAULT_SIZE = 224  # of ImageNet's networks, where a candidate names none
SHARES = (0.57, 0.72, 1.0)  # of a family's own size that are tried: 128, 160 and 224 of 224
KERAS_CACHE = Path.home() / ".keras" / "models"
TRACE = 4.0  # seconds, about, to build and compile a network


@click.command()
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    metavar="NAME[,weights=W][,OPTION=VALUE]",
    help="A base to judge; several are allowed. [every base whose weights are here]",
)
@click.option(
    "--size", "sizes", type=click.IntRange(32, 1024), multiple=True, help="Image side in pixels; several are allowed."
)
@click.option("--data", metavar="DIR", help="A folder of images instead of fetch.source.")
@click.option(
    "--sample", "number", type=click.IntRange(50), default=SAMPLE, show_default=True, help="Images to judge on."
)
@click.option("--apply", is_flag=True, help="Write the best base and size into params.yaml.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(
    candidates: tuple[str, ...], sizes: tuple[int, ...], data: str | None, number: int, apply: bool, as_json: bool
) -> None:
    """Judge bases and sizes on a sample of your images, by a cross-validated head on every cut.

    Takes a minute or a few. What `prepare` puts into test is not looked at.
    """
    params = load_params()
    if data is not None:
        params = params.model_copy(update={"fetch": params.fetch.model_copy(update={"source": data})})
    screening = run_screening(params, candidates, sizes, number)
    if as_json:
        click.echo(json.dumps(screening.to_record()))
    else:
        show(screening)
    log_result(params, screening, Path("params.yaml").read_text(encoding="utf-8"))
    if apply:
        apply_choice(screening.best)
        click.echo("params.yaml: base is the first of the table. Next: dvc repro", err=as_json)


class Basics(NamedTuple):
    """Seconds: to decode a file and to draw a view on one core, to write a byte, and until a stage has loaded its libraries."""

    decode: float
    augment: float
    disk: float
    start: float


@dataclass(frozen=True)
class Screening:
    """The candidates, best first; `left` were behind on fewer images. basics: by image size."""

    params: Params
    ranked: "list[Screened]"
    left: "list[Screened]"
    counts: "Counts"
    basics: dict[int, Basics]
    seconds: float

    @property
    def best(self) -> "Screened":
        return self.ranked[0]

    def plan(self, found: "Screened", params: Params | None = None) -> "Plan":
        """The plan of the whole line with a candidate, for other params than those of the screening where they are given."""
        return plan_of(params or self.params, self.counts, found, self.basics[found.base.image_size])

    def rows(self) -> list[dict[str, Any]]:
        """What is said of each, in the ranking's order."""
        from frostline.search.screening import find_equals

        equals = find_equals(self.ranked)
        return [
            {
                "label": label_of(each.base),
                **each.to_record(),
                "num_images": len(each.losses),
                "equal": each in equals,
                "line_seconds": self.plan(each).seconds,
            }
            for each in [*self.ranked, *self.left]
        ]

    def to_record(self) -> dict[str, Any]:
        return {
            "candidates": self.rows(),
            "accuracy_by_class": self.best.accuracy_by_class(),
            "seconds": self.seconds,
        }


def run_screening(params: Params, candidates: Sequence[str], sizes: Sequence[int], number: int) -> Screening:
    """Judges the candidates on the images of params; says each as it is judged on stderr."""
    started = time.monotonic()
    from frostline.planning.pace import count_images, find_images
    from frostline.process import work_folder
    from frostline.search.screening import draw_sample, load_sample, race

    loaded = time.monotonic() - started  # what a stage loads, too
    with work_folder("screen") as work:
        layout = find_images(params, work, number)
        entries = draw_sample(layout, params.prepare, params.seed, number)

        @cache
        def samples(size: int) -> "Sample":
            return load_sample(entries, params.prepare, size, params.seed, work)

        bases = list_bases(params.base, candidates, sizes)
        ranked, left = race(bases, samples, seed=params.seed, work=work, report=_report)
        found = {each.base.image_size: each.base for each in (*ranked, *left)}
        basics = {
            size: measure_basics(params.model_copy(update={"base": base}), work, loaded) for size, base in found.items()
        }
    seconds = time.monotonic() - started
    return Screening(params, ranked, left, count_images(params), basics, seconds)


def _report(found: "Screened") -> None:
    accuracy = found.accuracy
    click.echo(
        f"screen: {label_of(found.base)}: accuracy {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}], "
        f"log loss {found.log_loss:.3f}, {len(found.losses)} images, {found.seconds:.0f} s",
        err=True,
    )
    for warning in found.candidate.warnings:
        click.echo(f"screen: {warning}", err=True)


def list_bases(own: Base, candidates: Sequence[str], sizes: Sequence[int]) -> list[Base]:
    """The bases to judge, at each size: those named, or every one whose weights are here.

    Refused for a base that could not be fetched, and where there is none.
    """
    from frostline.bases.families import CUSTOM, FAMILIES
    from frostline.planning.checks import check_base
    from frostline.process import project_root

    found = [parse_candidate(text) for text in candidates] or [own, *find_weights()]
    bases: dict[str, Base] = {}
    for base in found:
        default = FAMILIES[base.name].default_size if base.name in FAMILIES else own.image_size
        own_sizes = [own.image_size] if base is own else []
        if base.name == CUSTOM or base.weights in ("bundled", "random"):
            tried = [own.image_size]
        else:
            tried = sorted({*own_sizes, *(_round(default * share) for share in SHARES)})
        for size in sizes or tried:
            each = base.model_copy(update={"image_size": size})
            bases.setdefault(label_of(each), each)
    problems = {label: check_base(base, project_root()) for label, base in bases.items()}
    if wrong := [f"{label}: {problem}" for label, each in problems.items() for problem in each]:
        raise Refused("\n".join(wrong))
    return list(bases.values())


def _round(size: float) -> int:
    """The nearest multiple of 32, which every family halves evenly."""
    return max(32, round(size / 32) * 32)


def parse_candidate(text: str) -> Base:
    """`MobileNetV2,weights=mine.h5,alpha=0.35` as a base; without weights those of its package, or of Keras."""
    from frostline.bases.families import parse_options
    from frostline.bases.packages import PACKAGES

    name, *parts = text.split(",")
    options = parse_options(parts)
    weights = options.pop("weights", "package" if name in PACKAGES else "imagenet")
    return Base(name=name, weights=str(weights), image_size=DEFAULT_SIZE, options=options)


def find_weights() -> list[Base]:
    """The bases whose weights are here without a download: of packages, and of Keras' cache."""
    from frostline.bases.families import FAMILIES
    from frostline.bases.packages import PACKAGES, find_package

    found = []
    for name in PACKAGES:
        with suppress(Refused):
            find_package(name)
            found.append(Base(name=name, weights="package", image_size=DEFAULT_SIZE))
    for file in sorted(KERAS_CACHE.glob("*no*top*.h5")):
        stem = re.sub(r"[^a-z0-9]", "", file.name.lower())
        names = [name for name in FAMILIES if stem.startswith(name.lower())]
        # Of a width other than 1 a file's name tells no option that could be trusted.
        if names and not re.search(r"_0_\d|_[01]\.[1-9]", file.name):
            found.append(Base(name=max(names, key=len), weights="imagenet", image_size=DEFAULT_SIZE))
    return found


def label_of(base: Base) -> str:
    """The base in a few words."""
    options = "".join(f", {name} {value}" for name, value in base.options.items())
    weights = "" if base.weights in ("package", "imagenet") else f", {Path(base.weights).name}"
    return f"{base.name}{options}{weights} at {base.image_size} px"


def measure_basics(params: Params, work: Path, start: float) -> Basics:
    """What does not depend on the base, for images of the params' size; start: seconds until a stage's libraries are loaded."""
    from frostline.planning.pace import measure_disk, measure_images

    with TemporaryDirectory(dir=work) as folder:
        _, decode, augment = measure_images(params, Path(folder))
    return Basics(decode, augment, measure_disk(work), start)


def plan_of(params: Params, counts: "Counts", found: "Screened", basics: Basics) -> "Plan":
    """About what the whole line would store and take: the plan, with a tail's pace from its FLOPs and the prefix's pace."""
    from frostline.bases.cost import flops_of
    from frostline.images.views import POOL_FROM
    from frostline.planning.depths import describe_network
    from frostline.planning.estimate import make_plan
    from frostline.planning.pace import Facts, Pace, Tail, reach_of
    from frostline.planning.storage import list_depths
    from frostline.process import count_cores

    params = params.model_copy(update={"base": found.base})
    cuts, flops = found.network.cuts, flops_of(found.network)
    first, last = params.tune.space.unfrozen_blocks
    if isinstance(last, int):  # that of another base, perhaps
        params = params.with_depths(min(first, len(cuts) - 1), min(last, len(cuts) - 1))
    else:
        reach = reach_of(params, describe_network(found.network, flops), counts)
        params = params.with_depths(reach.first, reach.last)
    depths = list_depths(params.tune)
    prefix = 1 / found.images_per_second
    # A step takes about three times as long as the way forward alone (Hobbhahn and Sevilla, Epoch AI, 2021).
    tails = {
        depth: Tail(TRACE, 3 * part, part)
        for depth in sorted({0, *depths})
        for part in [prefix * flops["suffix"][depth] / flops["total"]]
    }
    start = dict.fromkeys(("prepare", "augment", "extract", "tune", "refit"), basics.start)
    pace = Pace(basics.decode, basics.augment, basics.disk, start, TRACE, prefix, tails)
    row_bytes = {depth: 2 * math.prod(cuts[depth].shape) for depth in depths}
    facts = Facts(row_bytes, found.column_bytes, flops["prefix"], "float32", "")
    return make_plan(params, counts, facts, pace, count_cores(), POOL_FROM)


def show(screening: Screening) -> None:
    """The table, and what it says."""
    from rich.console import Console
    from rich.table import Table

    table = Table("base", "accuracy", "log loss", "images", "images/s", "KB a view", "line, min", box=None)
    for row in screening.rows():
        accuracy, loss = row["accuracy"], row["log_loss"]
        table.add_row(
            row["label"],
            f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]",
            f"{loss['value']:.3f} ± {loss['error']:.3f}{' =' if row['equal'] else ''}",
            str(row["num_images"]),
            f"{row['images_per_second']:.0f}",
            f"{row['column_bytes'] / 1e3:.1f}",
            f"{row['line_seconds'] / 60:.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    click.echo(
        "A head on every cut, out of fold, the lowest log loss first; =: this sample cannot tell it from the first."
    )
    hard = list(screening.best.accuracy_by_class().items())[:3]
    click.echo("Hardest classes with the first: " + ", ".join(f"{name} {share:.2f}" for name, share in hard))
    click.echo(f"{OUT / 'screen.png'} shows it; {screening.seconds:.0f} s")


def log_result(params: Params, screening: Screening, text: str) -> None:
    """Writes `reports/screen` and a run in MLflow; text: of params.yaml."""
    from frostline.evidence.figures.screening import screening as draw
    from frostline.files import save_json
    from frostline.process import project_root
    from frostline.tracking.lineage import lineage_tags
    from frostline.tracking.owners import sweep_dead_runs
    from frostline.tracking.runs import log_look
    from frostline.tracking.store import open_store

    rows, root, best = screening.rows(), project_root(), screening.best
    OUT.mkdir(parents=True, exist_ok=True)
    save_json(OUT / "screen.json", screening.to_record())
    shown = [{**row, "log_loss": row["log_loss"]["value"], "error": row["log_loss"]["error"]} for row in rows]
    draw(shown, OUT / "screen.png", num_images=len(best.losses))
    store = open_store(params.tracking, root)
    sweep_dead_runs(store)  # of a screening that was killed while it wrote this
    log_look(
        store,
        "screen",
        f"screen · {label_of(best.base)}",
        params={"fetch.source": redact(params.fetch.source), "base": best.base.model_dump(mode="json")},
        metrics={
            "accuracy": best.accuracy.value,
            "log_loss": best.log_loss,
            **{f"log_loss/{row['label']}": row["log_loss"] for row in shown},
        },
        tags=lineage_tags(text, root),
        artifacts=[OUT / "screen.json", OUT / "screen.png"],
    )


def save_first(params: Params, chosen: "Screened") -> "tuple[Path, Screened]":
    """A base with its head on every cut as one model, which answers before anything is searched; and what it is worth.

    Where a flip is among the transforms it has learned from the mirrored images, too, and asks the mirror image.
    """
    from frostline.files import save_json
    from frostline.planning.storage import flips
    from frostline.training.model import Members, build_model, save_model

    mirrored = flips(params.augment)
    answer = chosen.candidate.judge(chosen.rows, mirrored=mirrored)
    members = Members(None, [], None, [answer.head.whole], "all", 0.0)
    model = build_model(chosen.network, members, pooling="avg", temperature=1.0, mirrored=mirrored)
    OUT.mkdir(parents=True, exist_ok=True)
    save_json(OUT / "classes.json", list(chosen.candidate.sample.classes))
    save_model(model, OUT / "first.keras")
    return OUT / "first.keras", answer


def apply_choice(best: "Screened") -> None:
    """Puts the base into params.yaml, in which everything else stays."""
    from frostline.cli.presets import apply_settings
    from frostline.files import replacing

    path, base = Path("params.yaml"), best.base
    settings = {f"base.{name}": value for name, value in base.model_dump(mode="json").items()}
    depth = {"tune.space.unfrozen_blocks": [0, len(best.network.cuts) - 1]}
    text = path.read_text(encoding="utf-8")
    last = load_params().tune.space.unfrozen_blocks[1]
    if isinstance(last, int) and last >= len(best.network.cuts):
        settings |= depth
    text = apply_settings(text, settings)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
