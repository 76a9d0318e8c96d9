"""`frostline mend`: the project's own MLflow database, brought to this MLflow and this place."""

from pathlib import Path

import click


@click.command()
def command() -> None:
    """Bring mlflow.db to the installed MLflow, and its files' places to where the project stands now.

    The database as it was stays beside it. Nothing happens where nothing is wrong.
    """
    from frostline.errors import Refused
    from frostline.params import load_params
    from frostline.process import locked, project_root
    from frostline.tracking.mending import mend
    from frostline.tracking.store import tracking_uri

    root = project_root().resolve()
    tracking = load_params(root / "params.yaml").tracking
    uri = tracking_uri(tracking, root)
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///"):
        raise Refused("The tracking store is a server's or a database of its own; its keeper looks after it.")
    if not path.is_file():
        raise Refused(f"There is no {path} yet; the first run makes it.")
    with locked(root / ".frostline" / "store.lock"):
        lines = mend(path, root, tracking.experiment)
    click.echo("\n".join(lines) or f"{path.name}: nothing to mend")
