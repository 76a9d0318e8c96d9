"""`frostline clean`: what nothing leads to any more, listed, and removed when asked."""

import shutil
import subprocess
import time
from pathlib import Path

import click


@click.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Keep what is newer.",
)
@click.option("--cache", is_flag=True, help="Also collect DVC's cache: what the workspace does not use (dvc gc -w).")
@click.option("--yes", is_flag=True, help="Remove it; without this, it is only listed.")
def command(older_than: float, cache: bool, yes: bool) -> None:
    """List what neither the workspace nor a registered version leads to; with --yes, remove it.

    A registered version keeps its model, its run, its study and that study's trials.
    """
    from rich.console import Console
    from rich.table import Table

    from frostline.files import size_of
    from frostline.params import load_params
    from frostline.planning.earlier import keep_outputs, kept_folders, remove_kept
    from frostline.process import project_root
    from frostline.tracking.leftovers import DAY, Leftover, find_leftovers, remove_leftovers
    from frostline.tracking.owners import find_dead_runs, sweep_dead_runs
    from frostline.tracking.store import open_store, tracking_uri

    root = project_root()
    params = load_params(root / "params.yaml")
    uri = tracking_uri(params.tracking, root)
    is_made = not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()
    store = open_store(params.tracking, root) if is_made else None
    dead = 0
    if store is not None:
        dead = sweep_dead_runs(store) if yes else len(find_dead_runs(store))

    leftovers = find_leftovers(root, params.paths, store, older_than=older_than * DAY)
    kept = [
        Leftover("earlier", folder.parent.name, str(folder), size, time.time() - folder.stat().st_mtime)
        for folder, size in kept_folders(root)
    ]
    old = [each for each in kept if each.age >= older_than * DAY]
    leftovers += old
    console = Console(highlight=False)
    table = Table("kind", "name", "days", "size", box=None, padding=(0, 2, 0, 0))
    for leftover in leftovers:
        table.add_row(leftover.kind, leftover.name, f"{leftover.age / DAY:.0f}", _readable(leftover.size))
    if leftovers:
        console.print(table)
    total = sum(leftover.size for leftover in leftovers)
    console.print(f"{len(leftovers)} leftovers older than {older_than:g} days, {_readable(total)}.")
    if dead:
        console.print(f"{dead} runs whose process is gone {'were closed' if yes else 'are still RUNNING'}.")
    if yes:
        remove_leftovers(leftovers, root, store)
        for each in old:
            remove_kept(Path(each.key))
        for line in keep_outputs([], root, params.storage.kept_gb):
            console.print(line)
        console.print("Removed.")
    elif leftovers or dead:
        console.print("Nothing was removed. `frostline clean --yes` removes them.")

    if len(kept) > len(old):
        total = sum(each.size for each in kept) - sum(each.size for each in old)
        console.print(
            f"Outputs of earlier runs hold {_readable(total)}, from which rows are taken (storage.kept_gb: "
            f"{params.storage.kept_gb:g}); what DVC's cache holds, too, is there once."
        )
    held = size_of(root / ".dvc" / "cache")
    if cache and yes:
        subprocess.run([shutil.which("dvc") or "dvc", "gc", "--workspace", "--force"], cwd=root, check=True)
        console.print(f"DVC's cache: {_readable(held - size_of(root / '.dvc' / 'cache'))} freed.")
    elif held:
        console.print(
            f"DVC's cache holds {_readable(held)}. --cache --yes drops what this workspace does not use; "
            "results of other commits and experiments would have to be computed again."
        )


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
