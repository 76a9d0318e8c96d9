"""`frostline check`: params.yaml read, and every problem in it named, before anything runs."""

import click


@click.command()
def command() -> None:
    """Read params.yaml and name every problem in it, without running anything.

    Exit code 0 where nothing is wrong, 2 otherwise.
    """
    from frostline.cli.changes import show_changes
    from frostline.planning.checks import refuse_problems
    from frostline.planning.settings import ignored_settings

    refuse_problems()
    show_changes()
    for line in ignored_settings():
        click.echo(line)
    click.echo("params.yaml: no problem")
