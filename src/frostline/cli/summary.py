"""`frostline summary`: what the last `dvc repro` came to, in a few lines."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from frostline.evidence.refits import RefitRecord
    from frostline.evidence.trials import SearchRecord

NEXT = (
    ("frostline ui", "the runs, curves and images in MLflow's pages"),
    ("frostline compare", "all trials as a table in the terminal"),
    ("frostline promote", "make this version the champion, if the gate passes"),
)


@click.command()
def command() -> None:
    """Print the best trial, the test accuracy with its interval, the registered version, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    from frostline.cli.changes import show_changes
    from frostline.errors import Refused
    from frostline.evidence.refits import RefitRecord
    from frostline.evidence.trials import SearchRecord
    from frostline.files import load_json
    from frostline.params import load_params
    from frostline.planning.earlier import changes_since

    paths = load_params().paths
    files = [Path(paths.study) / "trials.json", Path(paths.evaluation) / "evaluation.json", Path(paths.registration)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise Refused(f"Nothing to sum up yet: {', '.join(missing)} is missing. Run `dvc repro`.")
    trials, evaluation, registration = map(load_json, files)
    refit = Path(paths.refit) / "refit.json"

    try:
        search = SearchRecord.from_record(trials)
        final = RefitRecord.from_record(load_json(refit)) if refit.is_file() else None
    except (KeyError, TypeError):
        raise Refused("The results are of another version of Frostline. Run `dvc repro`.") from None

    show_changes()
    changes = changes_since(Path(paths.prepared), Path())
    report = Path(paths.study) / "study.json"
    rows = summarize(search, final, evaluation, registration, load_json(report) if report.is_file() else {})
    suspicious = Path(paths.evaluation) / "suspicious.csv"
    if suspicious.is_file():
        rows.insert(-1, ("labels", tell_labels(suspicious)))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    if changes:
        table.add_row("since the last run", changes.describe())
    console = Console(highlight=False)
    console.print(table)
    console.print("\nNext:")
    # A shell that was not told of the environment does not find the commands.
    if os.environ.get("VIRTUAL_ENV") and not os.environ.get("VIRTUAL_ENV_PROMPT"):
        console.print(f"  source {Path(sys.prefix) / 'bin' / 'activate'}", soft_wrap=True)
    for name, what in NEXT:
        console.print(f"  {name:<18} {what}")


def summarize(
    search: "SearchRecord",
    refit: "RefitRecord | None",
    evaluation: Mapping[str, Any],
    registration: Mapping[str, Any],
    study: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """(name, value) of each line of the table; without `refit` where only the results were pulled, not the model."""
    from frostline.evidence.card import describe_final
    from frostline.evidence.trials import describe_collapsed, describe_edge

    best, finished = search.trial(search.best), len(search.in_state("COMPLETE"))
    rows: list[tuple[str, str]] = [
        (
            "best trial",
            f"{best.number} of {len(search.trials)} ({finished} ran to the end): {best.depth} blocks unfrozen, dropout "
            f"{best.hparams.dropout:.2f}, validation accuracy {best.score:.3f}",
        ),
        ("test accuracy", f"{_interval(evaluation['accuracy'])} on {evaluation['num_images']} images"),
    ]
    if refit:
        what = f"{describe_final(refit)}; accuracy out of fold {refit.accuracy:.3f} on {refit.num_images} images"
        rows.insert(1, ("final model", what))
    if "accuracy" in evaluation.get("baseline", {}):
        rows.append(("bare head", _interval(evaluation["baseline"]["accuracy"])))
    if evaluation.get("every_cut"):
        rows.append(("head on every cut", _interval(evaluation["every_cut"]["accuracy"])))
    told = [describe_edge(search, study), describe_collapsed(search, len(evaluation["per_class"]))]
    rows += [("note", note) for note in told if note]
    if registration["version"] is None:
        registered = f"not registered: {registration.get('reason', 'unknown')}"
    else:
        registered = f"{registration['name']} version {registration['version']}"
    return [*rows, ("registered", registered)]


def tell_labels(table: Path) -> str:
    """How many labels look wrong, and how many of these nobody has decided about yet."""
    from frostline.evidence.suspicion import load_suspects
    from frostline.images.decisions import load_decisions

    suspects, decisions = load_suspects(table), load_decisions()
    wrong = [each for each in suspects if each.looks_wrong]
    waiting = sum(each.file not in decisions for each in wrong)
    told = f"{len(wrong)} of {len(suspects)} look wrong"
    if len(wrong) > waiting:
        told += f", {len(wrong) - waiting} of them decided about"
    return told + ("; `frostline review` shows them" if waiting else "")


def _interval(measured: Mapping[str, float]) -> str:
    return f"{measured['value']:.3f}, 95 % interval {measured['low']:.3f} to {measured['high']:.3f}"
