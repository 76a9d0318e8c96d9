"""`frostline plan`: what every stage will store and take, before anything runs."""

import json
import sys

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(as_json: bool) -> None:
    """Print what each stage will store, what of it is new, how long it will take, and what gives way for storage.budget_gb.

    Measured on a handful of your images with your base: takes a minute or two, and changes nothing.
    """
    import shutil

    from frostline.planning.checks import refuse_problems

    refuse_problems()
    from frostline.images.views import POOL_FROM
    from frostline.params import load_params
    from frostline.planning.estimate import make_plan
    from frostline.planning.pace import measure
    from frostline.planning.reuse import measure_fresh
    from frostline.process import count_cores

    params = load_params()
    counts, facts, pace = measure(params)
    whole = make_plan(params, counts, facts, pace, count_cores(), POOL_FROM)
    fresh = measure_fresh(params, facts.rows, whole.storage)
    plan = make_plan(params, counts, facts, pace, count_cores(), POOL_FROM, fresh)
    if as_json:
        click.echo(json.dumps(plan.to_record()))
        return
    from rich.console import Console
    from rich.table import Table

    from frostline.cli.changes import show_changes

    show_changes()
    table = Table("stage", "what", "MB", "seconds", box=None)
    for step in plan.steps:
        table.add_row(step.stage, step.what, f"{step.bytes / 1e6:,.0f}" if step.bytes else "", f"{step.seconds:,.0f}")
    taken, seconds = sum(step.bytes for step in plan.steps), plan.seconds
    table.add_row("all", "", f"{taken / 1e6:,.0f}", f"{seconds:,.0f}")
    # A pipe has no width: rows are not to be folded there.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for note in plan.notes:
        click.echo(note)
    free = shutil.disk_usage(".").free
    if free < 1.1 * taken:
        click.echo(f"DISK: {free / 1e9:.1f} GB are free here, {taken / 1e9:.1f} GB are needed.")
