"""`frostline monitor`: whether the champion still meets what it was tested on."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from frostline.cli.predict import SUFFIXES, answer_all
from frostline.cli.project import Project, open_project

if TYPE_CHECKING:
    from frostline.evidence.monitoring import Answer, Reading
    from frostline.registry.versions import Version
    from frostline.serving.model import FrostlineModel

FILE = "monitored.csv"
MODEL = "frostline.monitored"  # tag of a run: the sha256 of the model that was looked at
ABOUT = {
    "accuracy": "The accuracy has fallen below what the test split speaks for.",
    "familiarity": "The images are less familiar than the test images were.",
    "shares": "The classes are answered in other shares than on the test split.",
}


@click.command()
@click.argument("images", metavar="FOLDER|CSV", type=click.Path(exists=True, path_type=Path))
@click.option("--version", "number", type=int, help="Monitor this version instead of the champion.")
def command(images: Path, number: int | None) -> None:
    """Look at new images: are they familiar, are the answers shared out as before, is the accuracy what was tested?

    A folder's images are labelled where they lie in folders named after the classes; a CSV has the columns file and, where somebody
    knows it, label. Images that were met before, or that the version was made from, are left out. The evidence goes on from run
    to run: false alarms come in one of twenty cases at most, for ever, however often this is called. Exits with 1 on alarm.
    docs/monitor.md says what each test asks.
    """
    from frostline.errors import Refused
    from frostline.evidence.monitoring import weigh
    from frostline.evidence.predictions import load_predictions
    from frostline.process import locked, work_folder
    from frostline.registry.data import PREDICTIONS, load_images
    from frostline.serving.model import DATA, FrostlineModel
    from frostline.tracking.runs import load_artifact

    given = list_files(images)
    if not given:
        raise Refused(f"{images} holds no images.")
    project = open_project(write=True)
    version, folder = project.open_version(number)
    store = project.store
    labeller = FrostlineModel(folder / DATA)
    with locked(store.root / ".frostline" / "monitor.lock"), work_folder("monitor") as work:
        test = load_predictions(load_artifact(store, version.run_id, PREDICTIONS, work))
        known = {image.sha256 for image in load_images(store, version) or []}
        before = load_before(project, version, work)
        new, failed = answer_new(labeller, given, before, known)
        answers = [*before, *new]
        found = weigh(test, answers)
        if new:
            log(project, version, answers, len(new), found, work)
        if answers:  # also those of a look that was killed before it could say so
            tell_version(project, version, len(answers), found)
    name = f"{version.name} version {version.number}"
    click.echo(f"{name}: {len(new)} new images or labels of {len(given)}, {len(answers)} in all")
    for test_name, reading in found.items():
        mark = click.style("ALARM", fg="red", bold=True) if reading.raised else click.style("calm ", fg="green")
        evidence = f"evidence 10^{reading.highest:.1f} of 10^{reading.limit:.1f}"
        click.echo(f"  {mark}  {test_name:<11} {reading.seen} ({reading.num_images} images, {evidence})")
        if reading.raised:
            click.echo(f"         {ABOUT[test_name]}")
    if test.familiarity is None:
        click.echo("  note   This version does not tell how familiar an image is; `dvc repro` makes one that does.")
    sys.exit(1 if failed or list_raised(found) else 0)


def list_files(given: Path) -> list[tuple[Path, str]]:
    """(file, label or "") of each image in a folder, by the folder that it lies in, or in a table."""
    from frostline.errors import Refused

    if given.is_dir():
        files = sorted(path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        return [(path, path.parent.name if path.parent != given else "") for path in files]
    with given.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "file" not in rows[0]:
        raise Refused(f"{given} needs a column `file`, and may have one `label`; files stand relative to the table.")
    return [(given.parent / row["file"], (row.get("label") or "").strip()) for row in rows]


def load_before(project: Project, version: "Version", work: Path) -> "list[Answer]":
    """The answers that the last look at this model kept."""
    from frostline.evidence.monitoring import load_answers
    from frostline.tracking.runs import find_last_look, load_artifact

    run_id = find_last_look(project.store, "monitor", MODEL, version.sha256)
    return [] if run_id is None else load_answers(load_artifact(project.store, run_id, FILE, work))


def answer_new(
    labeller: "FrostlineModel", given: Sequence[tuple[Path, str]], before: "Sequence[Answer]", known: set[str]
) -> "tuple[list[Answer], int]":
    """The answers to images that were not met before, or had no label then, and how many files are no images.

    A folder's name is a label where it is one of the classes; of a table, and of folders among such, another label is a wrong answer.
    """
    from frostline.evidence.monitoring import Answer, order
    from frostline.files import sha256_of

    met = {answer.sha256: answer for answer in before}
    labelled = {answer.sha256 for answer in before if answer.label}
    is_sorted = any(label in labeller.card.classes for _, label in given)
    places: dict[str, tuple[Path, str]] = {}
    failed = 0
    for path, label in given:
        try:
            sha256 = sha256_of(path)
        except OSError as error:
            failed += 1
            click.echo(f"{path}: {error.strerror}", err=True)
            continue
        label = label if is_sorted else ""
        if sha256 not in known and (sha256 not in met or (label and sha256 not in labelled)):
            places[sha256] = path, label
    chosen = [sha256 for sha256 in order(places) if sha256 not in met]
    new = [
        Answer(sha256, met[sha256].predicted, met[sha256].familiarity, places[sha256][1], again=True)
        for sha256 in order(places)
        if sha256 in met
    ]
    files = [(str(places[sha256][0]), None) for sha256 in chosen]
    rows = answer_all(labeller, files, tta=False, explain=None, show_progress=sys.stderr.isatty())
    for sha256, row in zip(chosen, rows, strict=True):
        if "error" in row:
            failed += 1
            click.echo(f"{row['file']}: {row['error']}", err=True)
        else:
            new.append(Answer(sha256, row["label"], row.get("familiarity"), places[sha256][1]))
    return new, failed


def log(
    project: Project,
    version: "Version",
    answers: "Sequence[Answer]",
    num_new: int,
    found: "dict[str, Reading]",
    work: Path,
) -> None:
    """Writes a run below the version's own, with the answers that the next look goes on from."""
    from frostline.evidence.monitoring import save_answers
    from frostline.tracking.runs import log_look

    save_answers(work / FILE, answers)
    metrics = {f"monitor/{name}": reading.wealth for name, reading in found.items()}
    metrics |= {f"monitor/{name}_highest": reading.highest for name, reading in found.items()}
    tags = {"mlflow.parentRunId": version.run_id, MODEL: version.sha256, "frostline.version": str(version.number)}
    log_look(
        project.store,
        "monitor",
        f"monitor · version {version.number}",
        params={"num_new": num_new},
        metrics={**metrics, "monitor/images": float(len(answers)), "monitor/alarms": float(len(list_raised(found)))},
        tags={**tags, "frostline.verdict": say_verdict(found)},
        artifacts=[work / FILE],
    )


def tell_version(project: Project, version: "Version", num_answers: int, found: "dict[str, Reading]") -> None:
    """Puts the verdict on the version."""
    text = f"{say_verdict(found)}, after {num_answers} images and labels"
    project.store.client.set_model_version_tag(version.name, str(version.number), "frostline.monitor", text)


def list_raised(found: "dict[str, Reading]") -> list[str]:
    """The tests that raise alarm."""
    return [name for name, reading in found.items() if reading.raised]


def say_verdict(found: "dict[str, Reading]") -> str:
    """Calm, or which tests raise alarm."""
    raised = list_raised(found)
    return f"alarm: {', '.join(raised)}" if raised else "calm"
