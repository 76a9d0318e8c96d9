"""`frostline trace`: from a version down to data and commit, or from a run up to its versions."""

import click

from frostline.cli.project import open_project


@click.command()
@click.argument("target", metavar="VERSION|RUN")
def command(target: str) -> None:
    """Print the chain version -> run -> trial -> params -> data -> commit.

    VERSION is a number or an alias such as champion; RUN is a run's id.
    """
    from rich.console import Console
    from rich.table import Table

    from frostline.registry.lineage import trace_run, trace_version
    from frostline.registry.versions import find_version

    project = open_project()
    name, store = project.name, project.store
    version = find_version(store, name, target)
    facts = trace_run(store, target) if version is None else trace_version(store, version)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    # Hashes are to be copied whole.
    table.add_column(overflow="fold")
    for title, value in facts:
        table.add_row(title, value)
    Console(highlight=False).print(table)
