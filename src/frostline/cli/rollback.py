"""`frostline rollback`: the champion before this one is champion again."""

import click


@click.command(short_help="Make the champion before this one champion again.")
@click.option("--to", type=int, help="A version, instead of the one before.")
@click.option("--reason", default="", help="Why; recorded in the history.")
def command(to: int | None, reason: str) -> None:
    """Move the alias `champion` back; the files of the version are checked first."""
    from frostline.cli.promote import COPIES
    from frostline.params import load_params
    from frostline.process import project_root
    from frostline.registry.moves import rollback
    from frostline.tracking.store import open_store

    params = load_params()
    name = params.register_.name
    move = rollback(open_store(params.tracking, project_root()), name, to, reason or "rolled back", COPIES)
    click.echo(f"{name} version {move.to_version} is the champion again; it was version {move.from_version}.")
