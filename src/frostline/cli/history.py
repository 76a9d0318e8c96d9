"""`frostline history`: every decision about the champion."""

import click

from frostline.cli.project import open_project


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON record per line.")
def command(as_json: bool) -> None:
    """List every promotion, refusal and rollback, oldest first, and how each version's images differ from its champion's."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from frostline.registry.moves import list_moves
    from frostline.registry.versions import AGAINST, CHAMPION, list_versions, number_at

    project = open_project()
    name, store = project.name, project.store
    moves = list_moves(store, name)
    if as_json:
        for move in moves:
            click.echo(json.dumps(asdict(move)))
        return
    champion = number_at(store, name, CHAMPION)
    if moves:
        table = Table("when", "who", "from", "to", "verdict", "reason", box=None, padding=(0, 2, 0, 0))
        for move in moves:
            before = "–" if move.from_version is None else str(move.from_version)
            table.add_row(move.at, move.who, before, str(move.to_version), move.verdict, move.reason)
        Console(highlight=False).print(table)
    for version in reversed(list_versions(store, name)):
        if AGAINST in version.tags:
            click.echo(f"Version {version.number}. {version.tags[AGAINST]}")
    click.echo(f"{name} has no champion." if champion is None else f"The champion of {name} is version {champion}.")
    last = next((move.to_version for move in reversed(moves) if move.moved), None)
    if champion != last:
        click.echo("It was moved by something else than `frostline promote` or `frostline rollback`.")
