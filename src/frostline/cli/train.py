"""`frostline train`: from a folder of images to a registered model, in one command."""

import os
import subprocess
import sys
from pathlib import Path

import click


@click.command()
@click.argument("data", metavar="DIR")
@click.option(
    "--minutes", type=click.FloatRange(1), default=10, show_default=True, help="About how long the whole line may take."
)
@click.option("--candidate", "candidates", multiple=True, metavar="BASE", help="As in `frostline screen`.")
@click.option("--force", is_flag=True, help="Overwrite edits of params.yaml.")
@click.pass_context
def command(context: click.Context, data: str, minutes: float, candidates: tuple[str, ...], force: bool) -> None:
    """Choose what suits the images in DIR (as `frostline use photos`), then run the line (as `dvc repro`).

    A first answer comes after about a minute, with a model that answers already. Where params.yaml is that of an earlier
    call for DIR, its choices stand, and what has been computed is not computed again.
    """
    from frostline.cli.photos import NAME, set_up
    from frostline.cli.presets import preset_of
    from frostline.cli.summary import command as summary
    from frostline.cli.use import place
    from frostline.params import load_params
    from frostline.process import project_root

    root = project_root()
    source = place(data, root)
    if not force and preset_of(root) == NAME and load_params(root / "params.yaml").fetch.source == source:
        click.echo(f"params.yaml was made for {data}, and stays; --force chooses anew")
    else:
        set_up(root, source, candidates, minutes, force=force)
    sys.stdout.flush()
    # DVC starts the stages with `python`: that of this environment.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    line = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=root,
        env={**os.environ, "PATH": places, "DVC_NO_ANALYTICS": "1"},
        check=False,
    )
    if line.returncode:
        sys.exit(line.returncode)
    context.invoke(summary)
