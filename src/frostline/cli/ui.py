"""`frostline ui`: MLflow's pages on this project's store, for this machine only."""

import os
import sys

import click

from frostline.cli.project import open_project


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=5000, show_default=True, help="0 takes a free one.")
def command(port: int) -> None:
    """Start MLflow's server on the loopback address and print where it is; Ctrl-C ends it.

    One worker and no job runner: MLflow's own default starts a dozen processes and takes 2.5 GB.
    """
    from frostline.cli.project import free_port

    store = open_project(write=True).store
    if store.uri.startswith("http"):
        click.echo(f"The runs are on a server already: {store.shown_uri}{view_of(store.experiment_id)}")
        return
    port = free_port(port)
    url = f"http://127.0.0.1:{port}"
    click.echo(f"{url}{view_of(store.experiment_id)}\n(ready in about ten seconds; Ctrl-C ends it)")
    sys.stdout.flush()
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # Its default list of hosts takes `10.evil.com` for an address of the local network.
    hosts = f"127.0.0.1:{port},localhost:{port}"
    arguments = ["--backend-store-uri", store.uri, "--artifacts-destination", (store.root / "mlruns").as_uri()]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--allowed-hosts", hosts]
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "server", *arguments], environment)


def view_of(experiment_id: str) -> str:
    """The address, below the server's, of the run table with our columns, the best first."""
    from frostline.tracking.store import VIEW

    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
