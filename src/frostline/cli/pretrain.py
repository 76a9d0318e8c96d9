"""`frostline pretrain`: a base of one's own, trained from scratch on a large source set."""

import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from frostline.errors import Refused
from frostline.files import load_json, save_json
from frostline.process import UNFINISHED, ask_git, held, keep_freed_memory, project_root

if TYPE_CHECKING:
    from frostline.bases.pretraining import Progress, Recipe, SourceSet

EVERY = 10.0  # seconds between two lines of progress
RUN = "run.json"  # in the work folder while the run in MLflow is open


@click.command()
@click.argument("source", default="generated")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="New folder for base.weights.h5 and card.json."
)
@click.option(
    "--base", "architecture", default="MobileNetV2", show_default=True, help="A family that `frostline blocks` lists."
)
@click.option("--option", "options", multiple=True, help="Constructor option of the family, for instance alpha=0.35.")
@click.option("--image-size", default=96, show_default=True, help="Side of the images in pixels.")
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-3, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.02, show_default=True)
@click.option("--label-smoothing", type=click.FloatRange(0, 0.9), default=0.1, show_default=True)
@click.option(
    "--augmentation", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="0 = none, 1 = strong."
)
@click.option(
    "--small-size", type=click.IntRange(32), help="Train the first epochs at this smaller size: much cheaper."
)
@click.option(
    "--small-share", type=click.FloatRange(0, 1), default=0.6, show_default=True, help="Share of such epochs."
)
@click.option("--classes", type=click.IntRange(2), default=256, show_default=True, help="Classes of `generated`.")
@click.option("--images-per-class", type=click.IntRange(2), default=200, show_default=True, help="Images of each.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that draw `generated`."
)
@click.option("--sha256", help="Of an archive, checked before it is unpacked.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True)
@click.option("--note", "notes", multiple=True, help="A sentence for the card, for instance what did not work.")
@click.option("--track/--no-track", default=True, show_default=True, help="Record an MLflow run in this project.")
def command(source: str, out: Path, architecture: str, options: tuple[str, ...], **settings: Any) -> None:
    """Train a network from scratch on SOURCE and write it as a base: weights and a card.

    SOURCE is `generated` (formula-driven images, nothing to download), a folder of class folders, an archive, a URL
    or tfds:NAME. A killed run goes on where it stopped when the same command is given again; a base that is there already,
    made from the same, is left as it is. Afterwards set `base.weights: OUT/base.weights.h5` in params.yaml.
    """
    card = load_json(out / "card.json") if (out / "card.json").exists() else None
    if card is not None and "inputs" not in card:
        _refuse_base(out)
    started = time.time()
    keep_freed_memory()
    from frostline.bases.pretraining import (
        Recipe,
        make_card,
        make_folder_source,
        make_generated_source,
        pretrain,
        save_base,
    )
    from frostline.devices import describe_device

    bfloat16 = settings["precision"] == "bfloat16" or (
        settings["precision"] == "auto" and not describe_device().startswith("CPU")
    )
    names = ("image_size", "epochs", "batch_size", "learning_rate", "weight_decay", "label_smoothing", "augmentation")
    recipe = Recipe(
        architecture,
        _parse_options(options),
        **{name: settings[name] for name in (*names, "small_size", "small_share", "seed")},
        mixed_precision=bfloat16,
    )
    inputs = _digest(source, recipe, settings)
    work = UNFINISHED / f"pretrain-{inputs}"
    if card is not None:
        if card["inputs"] != inputs:
            _refuse_base(out)
        _end_killed(work, out)
        click.echo(f"{out} holds this very base already: validation accuracy {card['val_accuracy']:.3f}")
        return
    work.mkdir(parents=True, exist_ok=True)
    with held(work / "lock", f"this very training (its work is in {work})"):
        click.echo(f"source: {source}; work: {work}")
        if source == "generated":
            images = make_generated_source(
                work / "images",
                settings["classes"],
                settings["images_per_class"],
                recipe.image_size,
                recipe.seed,
                settings["workers"],
            )
        else:
            images = make_folder_source(
                source, work, size=recipe.image_size, seed=recipe.seed, sha256=settings["sha256"]
            )
        click.echo(f"{images.description}; {len(images.val_labels)} more for validation")
        run = _Run(work) if settings["track"] else None
        if run:
            run.open(recipe, images)
        base, history = pretrain(images, recipe, work, _Printer().show)
        facts = {
            "command": shlex.join(["frostline", *sys.argv[1:]]),
            "commit": (ask_git(Path(), "rev-parse", "HEAD")[0] or "").strip() or None,
            "notes": list(settings["notes"]),
            "inputs": inputs,
        }
        path = save_base(out, base, make_card(recipe, images, history, licence="yours", **facts))
        if run:
            run.close(load_json(work / "history.json"), out)
    shutil.rmtree(work)
    click.echo(f"{path}: validation accuracy {history[-1].val_accuracy:.3f}, {time.time() - started:.0f} s")


class _Printer:
    """Lines of progress, not more often than EVERY seconds."""

    def __init__(self) -> None:
        self.last = 0.0

    def show(self, progress: "Progress") -> None:
        """Prints where training stands, when it is time."""
        if time.monotonic() - self.last < EVERY and progress.step < progress.steps:
            return
        self.last = time.monotonic()
        click.echo(
            f"epoch {progress.epoch + 1}/{progress.epochs} step {progress.step}/{progress.steps}: "
            f"loss {progress.loss:.3f} accuracy {progress.accuracy:.3f}"
        )


class _Run:
    """The MLflow run of one training, reopened when the training goes on."""

    def __init__(self, work: Path) -> None:
        from frostline.params import Tracking, load_params
        from frostline.tracking.owners import sweep_dead_runs
        from frostline.tracking.store import open_store

        root = project_root()
        section = load_params(root / "params.yaml").tracking if (root / "params.yaml").is_file() else Tracking()
        self.store, self.record = open_store(section, root), work / RUN
        sweep_dead_runs(self.store)

    def open(self, recipe: "Recipe", source: "SourceSet") -> None:
        """The run that a killed process of this training began, else a new one."""
        from dataclasses import asdict

        from frostline.tracking.lineage import lineage_tags
        from frostline.tracking.runs import open_final_run, reopen_run

        if self.record.is_file():
            reopen_run(self.store, load_json(self.record)["run_id"])
            return
        # `compare` and `promote` look for finals; this is none.
        tags = {**lineage_tags(f"seed: {recipe.seed}\n", self.store.root), "frostline.kind": "pretraining"}
        params = {**asdict(recipe), "source": source.description}
        run_id = open_final_run(self.store, name=f"pretrain {recipe.architecture}", params=params, tags=tags)
        save_json(self.record, {"run_id": run_id})

    def close(self, history: Sequence[Mapping[str, float]], out: Path) -> None:
        """Writes curves, card and result, and ends the run; done twice, it is done once.

        history: `asdict` of each Epoch.
        """
        from frostline.tracking.runs import close_run, log_to_run

        run_id = load_json(self.record)["run_id"]
        begun = self.store.client.get_run(run_id).info.start_time / 1000
        curves = {name: [epoch[name] for epoch in history] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        log_to_run(self.store, run_id, curves=curves, artifacts={out / "card.json": ""}, at=begun)
        close_run(self.store, run_id, metrics={"val_accuracy": history[-1]["val_accuracy"]})
        self.record.unlink()


def _refuse_base(out: Path) -> NoReturn:
    raise Refused(f"{out} holds a base already. Give another --out, or remove it.")


def _end_killed(work: Path, out: Path) -> None:
    """Does what is left of a training whose process was killed when its base was whole: its run is closed, its work removed."""
    if not work.exists():
        return
    with held(work / "lock", f"this very training (its work is in {work})"):
        if (work / RUN).is_file():
            _Run(work).close(load_json(work / "history.json"), out)
    shutil.rmtree(work)


def _parse_options(given: tuple[str, ...]) -> dict[str, int | float | bool]:
    """`alpha=0.35` -> {"alpha": 0.35}."""
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            options[name] = json.loads(value.lower())
        except json.JSONDecodeError:
            equals = ""
        if not equals or not isinstance(options[name], (int, float)):
            raise Refused(f"--option {text!r} is not NAME=NUMBER or NAME=true; for instance alpha=0.35.")
    return options


def _digest(source: str, recipe: "Recipe", settings: dict[str, Any]) -> str:
    drawn = [settings["classes"], settings["images_per_class"]] if source == "generated" else [settings["sha256"]]
    return hashlib.sha256(repr([source, recipe, drawn]).encode()).hexdigest()[:12]
