"""`frostline export`: the champion for other runtimes."""

from pathlib import Path

import click

from frostline.cli.project import open_project

FORMS = ("saved_model", "litert", "onnx")


@click.command()
@click.argument("forms", nargs=-1, required=True, type=click.Choice(FORMS), metavar="[saved_model|litert|onnx]...")
@click.option("--version", "number", type=int, help="Export this version instead of the champion.")
@click.option("--model", type=click.Path(path_type=Path), help="Export this .keras file, with the classes beside it.")
@click.option("--to", type=click.Path(path_type=Path), help="The folder to write into. [exports/NAME-VERSION]")
def command(forms: tuple[str, ...], number: int | None, model: Path | None, to: Path | None) -> None:
    """Write a model in other forms, each into a folder of its own, with export.json beside it.

    Each is run by its own runtime on prepared images and compared with the Keras model before it gets its name; one that
    differs by more than 1e-4 of a probability is removed. Images go in as uint8, RGB, decoded and resized as export.json
    says; probabilities come out in the order of its classes.
    """
    from dataclasses import asdict

    from frostline.cli.project import load_file
    from frostline.errors import Refused
    from frostline.params import load_params
    from frostline.serving.export import TOLERANCE, export_model, load_images, require_packages
    from frostline.serving.model import DATA, FrostlineModel

    if model and number:
        raise Refused("Give --model FILE or --version N, not both.")
    require_packages(forms)
    params = load_params()
    if model:
        labeller, folder_of_images, title = load_file(model), Path(params.paths.prepared) / "val", model.stem
        source = {"model": str(model)}
    else:
        version, folder = open_project().open_version(number)
        labeller, folder_of_images, title = (
            FrostlineModel(folder / DATA),
            folder / DATA,
            f"{version.name}-{version.number}",
        )
        source = {"model": version.name, "version": str(version.number)}
    card = asdict(labeller.card)
    facts = {"source": {**source, "sha256": card.pop("sha256")}, **card}
    images = load_images(folder_of_images, labeller.card.image_size)
    for form in dict.fromkeys(forms):
        place = (to or Path("exports") / title) / form
        record = export_model(labeller.network, form, place, images, facts)
        click.echo(
            f"{place / record['artefact']}\t{record['bytes'] / 1e6:.1f} MB, differs from the Keras model by at most "
            f"{record['max_difference']:.1e} on {len(images)} images (allowed {TOLERANCE:g})"
        )
