"""`frostline rollback`: the champion before this one is champion again."""

import click

from frostline.cli.project import COPIES, open_project


@click.command()
@click.option("--to", type=int, help="A version, instead of the one before.")
@click.option("--reason", default="", help="Why; recorded in the history.")
def command(to: int | None, reason: str) -> None:
    """Move the alias `champion` back; the files of the version are checked first."""
    from frostline.registry.moves import rollback

    project = open_project(write=True)
    move = rollback(project.store, project.name, to, reason or "rolled back", COPIES)
    click.echo(f"{project.name} version {move.to_version} is the champion again; it was version {move.from_version}.")
