"""`frostline diff`: the test images on which two runs give different answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frostline.cli.project import open_project

if TYPE_CHECKING:
    from frostline.evidence.predictions import Predictions
    from frostline.params import Params
    from frostline.tracking.store import Store

IMAGES = 48  # flips shown in the image, at most


@click.command()
@click.argument("before", metavar="RUN_A")
@click.argument("after", metavar="RUN_B")
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, help="Rows to print at most.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reports/diff"),
    show_default=True,
    help="Folder for the files.",
)
@click.option("--no-log", is_flag=True, help="Only print and write files; leave the runs alone.")
def command(before: str, after: str, limit: int, out: Path, no_log: bool) -> None:
    """Print which answers changed from RUN_A to RUN_B, and how surely one is better; log table and images to RUN_B.

    A run is named by its id or the beginning of it, by the number of its registered version, or by an alias such as
    champion.
    """
    from rich.console import Console
    from rich.table import Table

    from frostline.evidence.predictions import common_rows
    from frostline.files import save_json
    from frostline.tracking.runs import log_to_run

    project = open_project()
    params, store = project.params, project.store
    runs = [find_run(store, params, name) for name in (before, after)]
    tables = [load_run_predictions(store, run_id) for run_id, _ in runs]
    rows = common_rows(*tables)
    record, flips = compare_predictions(tables[0], tables[1], rows)

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "file", "is", runs[0][1], runs[1][1]):
        table.add_column(title)
    for flip in flips[:limit]:
        said = [f"{flip[side]} {flip[f'p_{side}']:.1%}" for side in ("before", "after")]
        table.add_row(flip["kind"], flip["file"], flip["label"], *said)
    console.print(table)
    if len(flips) > limit:
        console.print(f"and {len(flips) - limit} more in flips.csv; --limit N shows more")
    console.print(describe(record, runs[0][1], runs[1][1]))

    folder = out / f"{runs[0][0][:8]}-{runs[1][0][:8]}"
    files = write_flips(folder, params, flips, tables, (runs[0][1], runs[1][1]))
    save_json(folder / "diff.json", {"before": runs[0][0], "after": runs[1][0], **record})
    files.append(folder / "diff.json")
    if not no_log:
        log_to_run(store, runs[1][0], artifacts=dict.fromkeys(files, f"diff/{runs[0][0][:8]}"))
    console.print(f"written to {folder}" + ("" if no_log else f" and to run {runs[1][0]} under diff/{runs[0][0][:8]}"))


def find_run(store: "Store", params: "Params", name: str) -> tuple[str, str]:
    """(id, name for people) of the run that `name` means: a version's number, an alias, an id or its beginning."""
    from frostline.errors import Refused
    from frostline.registry.versions import find_version
    from frostline.tracking.runs import list_runs

    if version := find_version(store, params.register_.name, name):
        return version.run_id, f"version {version.number}"
    found = [run for run in list_runs(store) if run["id"].startswith(name)]
    if len(found) != 1:
        finals = ", ".join(f"{run['id'][:8]} ({run['name']})" for run in list_runs(store, "final")[:10])
        problem = f"{len(found)} runs begin with" if found else "no run, version or alias is called"
        raise Refused(f"{problem} {name!r}. Final runs: {finals or 'none yet; `dvc repro` makes them'}.")
    return found[0]["id"], found[0]["name"]


def load_run_predictions(store: "Store", run_id: str) -> "Predictions":
    """The table of answers that `evaluate` logged to the run; Refused where there is none."""
    import tempfile

    from frostline.evidence.predictions import load_predictions
    from frostline.tracking.runs import load_artifact

    with tempfile.TemporaryDirectory() as folder:
        return load_predictions(load_artifact(store, run_id, "predictions.csv", Path(folder)))


def compare_predictions(
    before: "Predictions", after: "Predictions", rows: Sequence[Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Counts and tests of all common images, and a record of each flip: broken first, then mended, then both wrong.

    rows: the common images' rows in each table.
    """
    from frostline.evidence.comparison import mcnemar, paired_difference

    place = {name: index for index, name in enumerate(after.class_names)}
    columns = [place[name] for name in before.class_names]
    labels, old, new = before.labels[rows[0]], before.probabilities[rows[0]], after.probabilities[rows[1]][:, columns]
    flips = []
    for index, (label, a, b) in enumerate(zip(labels, old.argmax(axis=1), new.argmax(axis=1), strict=True)):
        if a != b:
            kind = "broken" if a == label else "mended" if b == label else "both wrong"
            names = before.class_names
            flip = {"kind": kind, "file": before.files[rows[0][index]], "label": names[label], "before": names[a]}
            flips.append(flip | {"p_before": float(old[index, a]), "after": names[b], "p_after": float(new[index, b])})
    flips.sort(key=lambda flip: (("broken", "mended", "both wrong").index(flip["kind"]), -flip["p_after"]))
    counts = {kind: sum(flip["kind"] == kind for flip in flips) for kind in ("broken", "mended", "both wrong")}
    difference = paired_difference(labels, new, old)
    record = {
        "num_images": len(labels),
        **{kind.replace(" ", "_"): number for kind, number in counts.items()},
        "difference": {"value": difference.value, "low": difference.low, "high": difference.high},
        "p_better": mcnemar(counts["mended"], counts["broken"]),
        "p_worse": mcnemar(counts["broken"], counts["mended"]),
    }
    return record, flips


def describe(record: dict[str, Any], before: str, after: str) -> str:
    """The comparison in two sentences."""
    low, value, high = (100 * record["difference"][key] for key in ("low", "value", "high"))
    return (
        f"On {record['num_images']} common images {after} mends {record['mended']} answers of {before} and breaks "
        f"{record['broken']}; {record['both_wrong']} are wrong in another way. "
        f"Accuracy {value:+.2f} points, 95 % interval [{low:+.2f}, {high:+.2f}]; exact one-sided McNemar p = "
        f"{record['p_better']:.3g} for better, {record['p_worse']:.3g} for worse."
    )


def write_flips(
    folder: Path, params: "Params", flips: list[dict[str, Any]], tables: Sequence["Predictions"], names: tuple[str, str]
) -> list[Path]:
    """Writes flips.csv, and flips.png from the prepared test images; images that are not here are left out."""
    import csv

    import numpy as np

    from frostline.arrays import load_split
    from frostline.evidence.figures import sheets

    folder.mkdir(parents=True, exist_ok=True)
    table, image = folder / "flips.csv", folder / "flips.png"
    with table.open("w", encoding="utf-8", newline="") as file:
        columns = ("kind", "file", "label", "before", "p_before", "after", "p_after")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flips)
    test = Path(params.paths.prepared) / "test"
    if not (test / "ids.json").is_file():
        click.echo(f"No images: {test} is not here; `dvc checkout` or `dvc repro` brings it.", err=True)
        return [table]
    split = load_split(test)
    row_of = {name: row for row, name in enumerate(split.ids)}
    shown = [flip for flip in flips if flip["file"] in row_of][:IMAGES]
    place = {name: index for index, name in enumerate(tables[0].class_names)}
    images = np.stack([split.images[row_of[flip["file"]]] for flip in shown]) if shown else split.images[:0]
    labels, old, new = (np.array([place[flip[key]] for flip in shown], int) for key in ("label", "before", "after"))
    ids = [flip["file"] for flip in shown]
    sheets.flips(images, labels, (names[0], old), (names[1], new), ids, tables[0].class_names, image)
    return [table, image]
