"""`frostline use`: params.yaml from a preset, without losing comments or anybody's edits."""

from pathlib import Path

import click


@click.command()
@click.argument("preset", required=False)
@click.option("--data", metavar="DIR", help="A folder or archive with the images, instead of the preset's source.")
@click.option("--weights", metavar="FILE", help="A weights file, package or random; instead of the preset's weights.")
@click.option("--base", metavar="NAME", help="Another base, whole and with its own options.")
@click.option(
    "--minutes", type=click.FloatRange(1), default=10, show_default=True, help="For photos: of the whole line."
)
@click.option("--candidate", "candidates", multiple=True, metavar="BASE", help="For photos: as in `frostline screen`.")
@click.option("--force", is_flag=True, help="Overwrite edits of params.yaml.")
def command(
    preset: str | None,
    data: str | None,
    weights: str | None,
    base: str | None,
    minutes: float,
    candidates: tuple[str, ...],
    force: bool,
) -> None:
    """Set params.yaml from PRESET; what the preset does not name is as in presets/default.yaml.

    The preset `photos` looks at --data and chooses: the base and its size on a sample, the shares, epochs and depth by the
    number of images and the minutes.

    Without PRESET, list the presets. Refused where it would overwrite edits of yours, or where the result could not run.
    """
    from frostline.bases.packages import PACKAGES
    from frostline.cli.photos import NAME, set_up
    from frostline.cli.presets import DEFAULT, apply_settings, list_presets, load_preset, write_params
    from frostline.errors import Refused
    from frostline.params import list_problems, parse_document
    from frostline.planning.checks import find_problems
    from frostline.process import project_root

    root = project_root()
    if preset is None:
        for known in list_presets(root):
            click.echo(f"{known.name}\n    {known.about}")
        click.echo(
            "photos\n    for a folder of your own: looks at it, judges bases on a sample, and chooses what suits"
        )
        click.echo("\nfrostline use NAME [--data DIR] [--weights FILE] [--base NAME]")
        return

    if preset == NAME:
        if data is None or base is not None or weights is not None:
            raise Refused("photos needs --data DIR and chooses the base; --candidate NAME says between which.")
        set_up(root, place(data, root), candidates, minutes, force=force)
        click.echo("\nNext: dvc repro")
        return
    chosen = load_preset(root, preset)
    settings = dict(chosen.settings)
    if base is not None:
        # The bundled weights fit no other base.
        weights = weights or settings.get("base.weights", "package" if base in PACKAGES else "imagenet")
        settings |= {"base.name": base, "base.options": {}, "base.output_layer": None}
    if data is not None:
        settings["fetch.source"] = place(data, root)
    if weights is not None:
        settings["base.weights"] = place(weights, root)
    text = apply_settings((root / DEFAULT).read_text(encoding="utf-8"), settings)
    problems = find_problems(parse_document(text), root)
    if problems:
        raise Refused(list_problems(f"params.yaml as {preset} would write it", problems))
    write_params(root, text, preset, force=force)
    click.echo(f"params.yaml: {chosen.about}")
    if chosen.notes:
        click.echo("\n" + chosen.notes.rstrip())
    click.echo("\nNext: dvc repro")


def place(given: str, root: Path) -> str:
    """A path as params.yaml should hold it: below the root relative to it, elsewhere absolute; no path, unchanged."""
    path = Path(given).expanduser()
    if not path.exists():
        return given
    path = path.resolve()
    return str(path.relative_to(root.resolve())) if path.is_relative_to(root.resolve()) else str(path)
