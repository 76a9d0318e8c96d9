"""`frostline check`: params.yaml read, and every problem in it named, before anything runs."""

from contextlib import suppress

import click


@click.command()
def command() -> None:
    """Read params.yaml and name every problem in it, without running anything.

    Exit code 0 where nothing is wrong, 2 otherwise.
    """
    from frostline.cli.changes import show_changes
    from frostline.errors import Refused
    from frostline.params import load_params
    from frostline.planning.checks import describe_depths, refuse_problems
    from frostline.planning.defaults import describe_splits
    from frostline.planning.pace import count_images
    from frostline.planning.settings import ignored_settings

    refuse_problems()
    show_changes()
    params = load_params()
    if params.scale.store:
        from frostline.search.depot import open_depot

        open_depot(params)
    with suppress(Refused):  # only `fetch` can tell
        counts = count_images(params)
        for line in describe_splits(counts.test, counts.val, counts.num_classes):
            click.echo(line)
    for line in [*describe_depths(params.base, params.tune), *ignored_settings()]:
        click.echo(line)
    click.echo("params.yaml: no problem")
