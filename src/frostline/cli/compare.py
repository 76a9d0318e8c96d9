"""`frostline compare`: the trials and finals as a table in the terminal, with the columns of the UI."""

import json
from collections.abc import Mapping
from typing import Any

import click

from frostline.cli.project import open_project
from frostline.hparams import HPARAMS

# Columns that a narrower window would cut off.
WIDTH = 132
# Metric -> how its value is written, in the order of the table; the same names as in MLflow's pages.
METRICS = {
    **dict.fromkeys(("best_val_accuracy", "best_val_loss", "test_accuracy"), ".4f"),
    **dict.fromkeys(("best_epoch", "epochs"), ".0f"),
    "seconds": ".1f",
}


@click.command()
@click.option("--finals", "kind", flag_value="final", help="Only final models.")
@click.option("--trials", "kind", flag_value="trial", help="Only trials.")
@click.option("--study", default="", help="Only runs of the study whose digest begins so.")
@click.option("--sort", help="A metric or hparam, the largest first; -NAME turns it round. [best_val_accuracy]")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Rows to show at most.")
@click.option("--ids", is_flag=True, help="Show each run's id.")
@click.option("--json", "as_json", is_flag=True, help="One JSON record per line.")
def command(kind: str | None, study: str, sort: str | None, limit: int, ids: bool, as_json: bool) -> None:
    """Print what was tried, the best first. Columns in which nothing differs stand above the table."""
    from rich.console import Console
    from rich.table import Table

    from frostline.errors import Refused
    from frostline.tracking.runs import list_runs

    store = open_project().store
    rows = [row for row in list_runs(store, kind) if row["study"].startswith(study)]
    if not rows:
        raise Refused(f"No runs in {store.shown_uri} yet. `dvc repro` makes them.")
    if sort or any("best_val_accuracy" in row for row in rows):
        rows = sort_rows(rows, sort or "best_val_accuracy")
    shown = rows[:limit]
    if as_json:
        for row in shown:
            click.echo(json.dumps(row))
        return
    columns = [name for name in (*HPARAMS, *METRICS) if any(row.get(name) is not None for row in rows)]
    same = {name: rows[0].get(name) for name in columns if len(rows) > 1 and len({row.get(name) for row in rows}) == 1}
    # A table that is cut off says nothing; in a narrow terminal its lines wrap instead.
    console = Console(highlight=False, width=max(Console().width, WIDTH), soft_wrap=False)
    if same:
        console.print("all: " + ", ".join(f"{name} {show(name, value)}" for name, value in same.items()))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("run", "state", *columns):
        if name not in same:
            table.add_column(title_of(name), justify="left" if name in ("run", "state") else "right", no_wrap=True)
    for row in shown:
        values = [show(name, row.get(name)) for name in columns if name not in same]
        table.add_row(short_name(row) + (f" {row['id']}" if ids else ""), row["state"], *values)
    console.print(table)
    if len(rows) > limit:
        console.print(f"and {len(rows) - limit} more; --limit N shows more")


def sort_rows(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """The rows with the largest value first, or the smallest with `-name`; rows without a value last.

    Raises Refused for a name that no run has.
    """
    from frostline.errors import Refused

    name, reverse = by.removeprefix("-"), not by.startswith("-")
    known = sorted({key for row in rows for key in row} - {"id", "kind"})
    if name not in known:
        raise Refused(f"--sort {name}: no run has it. Allowed: {', '.join(known)}.")
    with_value = [row for row in rows if row.get(name) is not None]
    numeric = all(isinstance(row[name], (int, float)) for row in with_value)
    with_value.sort(key=lambda row: row[name] if numeric else str(row[name]), reverse=reverse)
    return with_value + [row for row in rows if row.get(name) is None]


def title_of(name: str) -> str:
    """A column's heading: the UI's name with its words on lines of their own, so that the table stays narrow."""
    return name.replace("_", "\n")


def short_name(row: Mapping[str, Any]) -> str:
    """The run's name without the hparams in it, which have columns of their own: "trial 07", "final · trial 07"."""
    return " · ".join(part for part in str(row["name"]).split(" · ") if not part.startswith(("depth ", "dropout ")))


def show(name: str, value: Mapping[str, Any] | float | str | None) -> str:
    """A value as a cell."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if name in HPARAMS:
        return format(value, HPARAMS[name].form)
    return format(value, METRICS.get(name, ".3f"))
