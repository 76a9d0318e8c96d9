"""`frostline serve`: the champion behind MLflow's own scoring server."""

import os
import sys
from pathlib import Path

import click

from frostline.cli.project import free_port, open_project

EXAMPLE = (
    """curl {url}/invocations -H 'Content-Type: application/json' """
    """-d '{{"dataframe_records": [{{"image": "'"$(base64 -w0 photo.jpg)"'"}}]}}'"""
)


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=5001, show_default=True, help="0 takes a free one.")
@click.option("--version", "number", type=int, help="Serve this version instead of the champion.")
def command(port: int, number: int | None) -> None:
    """Serve the champion on the loopback address, in this environment; Ctrl-C ends it.

    POST /invocations takes base64 images in the column `image`, or nested lists of 0 to 255 in `pixels`, and answers
    with label, probability and all probabilities; what is no image gets status 400. The model's files are compared
    with the registered sha256 before it starts.
    """

    project = open_project()
    version, folder = project.open_version(number)
    port = free_port(port)
    url = f"http://127.0.0.1:{port}"
    click.echo(
        f"{project.name} version {version.number} at {url}/invocations (ready in a minute or less; Ctrl-C ends it)"
    )
    click.echo(EXAMPLE.format(url=url))
    sys.stdout.flush()
    # MLflow starts `uvicorn` by name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": project.store.uri, "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = ["--model-uri", str(folder), "--env-manager", "local", "--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--workers", "1"]
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "models", "serve", *arguments], environment)
