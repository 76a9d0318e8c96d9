"""`frostline report`: the page of a result, and two versions side by side."""

import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from frostline.errors import Refused

if TYPE_CHECKING:
    from frostline.evidence.report import Side
    from frostline.params import Params
    from frostline.tracking.store import Store

OUT = Path("reports/report")


@click.command()
@click.argument("run", required=False, metavar="[VERSION]")
@click.option("--compare", nargs=2, metavar="A B", help="Two versions side by side.")
@click.option("--no-open", is_flag=True, help="Only print where the page is; open no browser.")
def command(run: str | None, compare: tuple[str, str] | None, no_open: bool) -> None:
    """Open the report of the last `dvc repro`, or of VERSION: one page with its images, which calls nobody.

    A version is named by its number, by an alias such as champion, or by its run's id.
    """
    if compare and run:
        raise Refused("Name one version, or two with --compare.")
    page = compare_versions(*compare) if compare else find_report(run) if run else last_report()
    click.echo(page)
    if not no_open:
        webbrowser.open(page.resolve().as_uri())


def last_report() -> Path:
    """The page that `evaluate` wrote; Refused where there is none."""
    from frostline.params import load_params

    page = Path(load_params().paths.evaluation) / "report.html"
    if not page.is_file():
        raise Refused(f"{page} is missing. `dvc repro` makes it.")
    return page


def find_report(name: str) -> Path:
    """The page of a version, as it was logged, copied from the store."""
    from frostline.cli.diff import find_run
    from frostline.cli.project import open_project
    from frostline.files import replacing
    from frostline.tracking.runs import load_artifact

    project = open_project()
    run_id, _ = find_run(project.store, project.params, name)
    page = OUT / f"{run_id[:8]}.html"
    with tempfile.TemporaryDirectory() as folder, replacing(page) as temporary:
        temporary.write_bytes(load_artifact(project.store, run_id, "report.html", Path(folder)).read_bytes())
    return page


def compare_versions(first: str, second: str) -> Path:
    """A page with both."""
    from frostline.cli.diff import compare_predictions, describe, load_run_predictions
    from frostline.cli.project import open_project
    from frostline.evidence.predictions import common_rows
    from frostline.evidence.report import make_comparison
    from frostline.files import replacing

    project = open_project()
    store = project.store
    left, right = (load_side(store, project.params, name) for name in (first, second))
    tables = [load_run_predictions(store, side.run_id) for side in (left, right)]
    record, flips = compare_predictions(tables[0], tables[1], common_rows(*tables))
    page = OUT / f"{left.run_id[:8]}-{right.run_id[:8]}.html"
    with replacing(page) as temporary:
        lead = describe(record, left.name, right.name)
        temporary.write_text(make_comparison(left, right, lead, flips), encoding="utf-8")
    return page


def load_side(store: "Store", params: "Params", name: str) -> "Side":
    """What the store has of a version."""
    from frostline.cli.diff import find_run
    from frostline.evidence.evaluation import Evaluation
    from frostline.evidence.refits import RefitRecord
    from frostline.evidence.report import Side
    from frostline.files import load_json
    from frostline.tracking.runs import load_artifact

    run_id, shown = find_run(store, params, name)
    with tempfile.TemporaryDirectory() as folder:
        files = {
            file: load_json(load_artifact(store, run_id, file, Path(folder)))
            for file in ("evaluation.json", "refit.json")
        }
    try:
        return Side(
            shown,
            run_id,
            Evaluation.from_record(files["evaluation.json"]),
            RefitRecord.from_record(files["refit.json"]),
        )
    except (KeyError, TypeError):
        raise Refused(
            f"{shown} was made by another version of Frostline; `frostline diff` still compares it."
        ) from None
