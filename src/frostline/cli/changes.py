"""A word on inputs that changed since the results were made; not a command, three commands say it."""

from pathlib import Path

import click


def show_changes() -> None:
    """Prints what changed in the source or the weights since `data/raw` was made of them; nothing where nothing did."""
    from frostline.errors import Refused
    from frostline.images.survey import describe_changes
    from frostline.params import load_params

    params = load_params()
    try:
        lines = describe_changes(params.fetch, params.base, Path(params.paths.raw), Path())
    except Refused as refusal:
        lines = [f"{params.fetch.source} cannot be read any more: {refusal}"]
    for line in lines:
        click.echo(line)
