"""`frostline predict`: label and probability of images, from the champion."""

import csv
import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frostline.cli.project import load_file, open_project
from frostline.images.names import READ

if TYPE_CHECKING:
    from frostline.serving.model import FrostlineModel

# Of the files in a folder; a file that is named is read whatever it is called.
SUFFIXES = frozenset(chain(*READ.values()))
STDIN = "-"


@click.command()
@click.argument("images", nargs=-1, metavar="FILES|FOLDERS|GLOBS|-")
@click.option("--version", "number", type=int, help="Use this version instead of the champion.")
@click.option("--model", type=click.Path(path_type=Path), help="Use this .keras file, with the classes beside it.")
@click.option("--base", help="Label with a base as it was released, without any training: its name, as MobileNetV2.")
@click.option("--weights", type=click.Path(path_type=Path), help="The file of weights for --base.")
@click.option("--options", multiple=True, metavar="KEY=VALUE", help="A constructor option of --base, as alpha=0.35.")
@click.option("--labels", type=click.Path(path_type=Path), help="The names of the classes for --base, as JSON.")
@click.option("--csv", "form", flag_value="csv", help="Write CSV.")
@click.option("--json", "form", flag_value="json", help="Write one JSON record per line.")
@click.option("--tta", is_flag=True, help="Average each image with its mirror image.")
@click.option(
    "--coverage", type=float, help="A set of labels, too, that holds the right one with this probability, as 0.95."
)
@click.option("--explain", type=click.Path(path_type=Path), help="Write a Grad-CAM image of each into this folder.")
def command(
    images: tuple[str, ...],
    number: int | None,
    model: Path | None,
    base: str | None,
    weights: Path | None,
    options: tuple[str, ...],
    labels: Path | None,
    form: str | None,
    tta: bool,
    coverage: float | None,
    explain: Path | None,
) -> None:
    """Print label and probability of each image; `-` reads an image, or a list of file names, from standard input.

    A file that is no image is reported and does not stop the rest; the exit code is then 1.
    """
    from frostline.errors import Refused

    if base is None and (weights or labels or options):
        raise Refused("--weights, --options and --labels go with --base NAME; a model of your own is --model FILE.")
    if base is not None and (number or model or tta or explain or coverage):
        raise Refused(
            "--base labels with a base as it is: --version, --model, --tta, --coverage and --explain do not go with it."
        )
    if coverage is not None and tta:
        raise Refused("--coverage is promised for the model's own answers; --tta gives others.")
    found, unknown = find_images(images)
    if base is not None:
        from frostline.bases.families import parse_options
        from frostline.serving.direct import label_images

        answers = label_images(base, weights, found, labels=labels, options=parse_options(options))
        sys.exit(write_answers(chain(unknown, answers), form, ()))
    labeller = load_labeller(number, model)
    threshold = None if coverage is None else labeller.card.threshold(coverage)
    show = form is None and sys.stderr.isatty()
    rows = answer_all(labeller, found, tta=tta, explain=explain, show_progress=show, threshold=threshold)
    more = [*(["familiarity"] if labeller.knows_strangers else []), *(["set"] if threshold is not None else [])]
    sys.exit(write_answers(chain(unknown, rows), form, labeller.card.classes, more))


def find_images(given: Sequence[str]) -> tuple[list[tuple[str, bytes | None]], list[dict[str, Any]]]:
    """(name, bytes or None for a file) of each image, and an error record for each name that stands for nothing.

    Folders are read with all that lies below them, by suffix; a glob may be quoted. Raises Refused where nothing is left.
    """
    from frostline.errors import Refused

    found: list[tuple[str, bytes | None]] = []
    unknown = []
    for name in given:
        path = Path(name)
        if name == STDIN:
            found += read_stdin()
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            found += [(str(file), None) for file in inside]
            if not inside:
                unknown.append({"file": name, "error": "the folder holds no images"})
        elif path.exists():
            found.append((name, None))
        elif matches := sorted(glob.glob(name, recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
            found += [(match, None) for match in matches if Path(match).is_file()]
        else:
            unknown.append({"file": name, "error": "no such file, folder or pattern"})
    if not found and not unknown:
        raise Refused("No images given. Name files, folders or patterns, or - for standard input.")
    return found, unknown


def read_stdin() -> list[tuple[str, bytes | None]]:
    """What standard input holds: the names of files, one a line, or the bytes of one image."""
    data = sys.stdin.buffer.read()
    try:
        names = data.decode().split("\n")
    except UnicodeDecodeError:
        return [("(stdin)", data)]
    return [(name, None) for name in names if name.strip()]


def load_labeller(number: int | None, model: Path | None) -> "FrostlineModel":
    """The champion, the version or the file, checked against its sha256 and loaded by Keras in safe mode."""
    from frostline.errors import Refused
    from frostline.serving.model import DATA, FrostlineModel

    if model is not None:
        if number is not None:
            raise Refused("Give --model FILE or --version N, not both.")
        return load_file(model)

    return FrostlineModel(open_project().open_version(number)[1] / DATA)


def answer_all(
    labeller: "FrostlineModel",
    files: Sequence[tuple[str, bytes | None]],
    *,
    tta: bool,
    explain: Path | None,
    show_progress: bool,
    threshold: float | None = None,
) -> Iterator[dict[str, Any]]:
    """One record per image, in order, 32 at a time: file, label, probability, probabilities and familiarity, or file and error.

    threshold: of a set of labels, which each record then has, too.
    """
    import numpy as np

    from frostline.images.decoding import UnreadableImage
    from frostline.serving.model import BATCH_SIZE, make_answers

    with click.progressbar(length=len(files), label="Labelling", file=sys.stderr, hidden=not show_progress) as bar:
        for start in range(0, len(files), BATCH_SIZE):
            batch = files[start : start + BATCH_SIZE]
            images: dict[int, Any] = {}
            records: dict[int, dict[str, Any]] = {}
            for index, (name, data) in enumerate(batch):
                try:
                    images[index] = labeller.decode(Path(name).read_bytes() if data is None else data)
                except (UnreadableImage, OSError) as error:
                    records[index] = {"file": name, "error": str(error)}
            if images:
                stacked = np.stack(list(images.values()))
                probabilities, familiarity = labeller.answer(stacked)
                if tta:
                    probabilities = np.mean(
                        [probabilities, labeller.probabilities(stacked[:, :, ::-1])], axis=0, dtype=np.float32
                    )
                answers = make_answers(probabilities, labeller.card.classes, threshold, familiarity)
                for index, answer in zip(images, answers, strict=True):
                    records[index] = {"file": batch[index][0], **answer}
                if explain is not None:
                    # The number keeps images of the same name in several folders apart.
                    names = [f"{start + index:05d}-{Path(batch[index][0]).stem}.png" for index in images]
                    write_heat_maps(labeller, stacked, probabilities.argmax(axis=1), explain, names)
            bar.update(len(batch))
            yield from (records[index] for index in range(len(batch)))


def write_heat_maps(labeller: "FrostlineModel", images: Any, labels: Any, folder: Path, names: Sequence[str]) -> None:
    """Writes a PNG per image: the image beside itself under the Grad-CAM map of its label."""
    import cv2
    import numpy as np

    from frostline.evidence.explanation import explain
    from frostline.evidence.figures.sheets import overlay

    folder.mkdir(parents=True, exist_ok=True)
    for image, heat, name in zip(images, explain(labeller.network, images, labels), names, strict=True):
        pair = np.concatenate([image, overlay(image, heat)], axis=1)
        encoded = cv2.imencode(".png", np.ascontiguousarray(pair[..., ::-1]))[1]
        (folder / name).write_bytes(encoded.tobytes())


def write_answers(
    rows: Iterable[dict[str, Any]], form: str | None, classes: Sequence[str], more: Sequence[str] = ()
) -> int:
    """Writes the records as they come, errors to standard error too; the exit code: 1 where there were errors, else 0.

    more: what else the records have, of `familiarity` and a `set` of labels, which is a JSON list in CSV.
    """
    failed = 0
    writer = csv.writer(sys.stdout)
    if form == "csv":
        columns = [*(f"p({name})" for name in classes), *more, "error"]
        writer.writerow(["file", "label", "probability", *columns])
    for row in rows:
        if "error" in row:
            failed += 1
            click.echo(f"{row['file']}: {row['error']}", err=True)
        if form == "json":
            click.echo(json.dumps(row))
        elif form == "csv":
            scores = [row.get("probabilities", {}).get(name, "") for name in classes]
            found = {name: row.get(name, "") for name in more}
            scores += [json.dumps(value) if isinstance(value, list) else value for value in found.values()]
            writer.writerow(
                [row["file"], row.get("label", ""), row.get("probability", ""), *scores, row.get("error", "")]
            )
        elif "error" not in row:
            fields = [row["file"], row["label"], f"{row['probability']:.4f}"]
            fields += [f"{{{', '.join(row['set'])}}}"] if "set" in row else []
            fields += [f"familiarity {row['familiarity']:.2f}"] if "familiarity" in row else []
            click.echo("\t".join(fields))
            for other in row.get("top", ())[1:]:
                click.echo(f"\t{other['label']}\t{other['probability']:.4f}")
    return 1 if failed else 0
