"""`frostline serve`: the champion behind MLflow's own scoring server, with limits on what comes in."""

import ipaddress
import os
import sys

import click

from frostline.cli.project import free_port, open_project

EXAMPLE = (
    """curl {url}/invocations -H 'Content-Type: application/json' """
    """-d '{{"dataframe_records": [{{"image": "'"$(base64 -w0 photo.jpg)"'"}}]}}'"""
)
OPEN = (
    "WARNING: {host} is not this machine alone: whoever reaches it may ask the model, without a password and unencrypted. "
    "Put a proxy before it that has both."
)
above_zero = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=5001, show_default=True, help="0 takes a free one.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Another address than this machine's own opens it."
)
@click.option("--version", "number", type=int, help="Serve this version instead of the champion.")
@click.option("--max-mb", type=above_zero, default=64, show_default=True, help="Of a request; more gets 413.")
@click.option(
    "--max-images", type=click.IntRange(1), default=256, show_default=True, help="In a request; more get 400."
)
@click.option("--max-megapixels", type=above_zero, default=1000, show_default=True, help="In a request; more get 400.")
def command(port: int, host: str, number: int | None, max_mb: float, max_images: int, max_megapixels: float) -> None:
    """Serve the champion on the loopback address, in this environment; Ctrl-C ends it.

    POST /invocations takes base64 images in the column `image`, or nested lists of 0 to 255 in `pixels`, and answers
    with label, probability and all probabilities; what is no image gets status 400, and so does an image of more than
    prepare.max_megapixels. The model's files are compared with the registered sha256 before it starts.
    """
    from frostline.serving import doorkeeper
    from frostline.serving.model import MAX_IMAGES, MAX_MEGAPIXELS

    project = open_project()
    version, folder = project.open_version(number)
    port = free_port(port, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if not _is_loopback(host):
        click.echo(OPEN.format(host=host), err=True)
    click.echo(
        f"{project.name} version {version.number} at {url}/invocations (ready in a minute or less; Ctrl-C ends it)"
    )
    click.echo(EXAMPLE.format(url=url))
    sys.stdout.flush()
    limits = {MAX_IMAGES: str(max_images), MAX_MEGAPIXELS: str(max_megapixels)}
    environment = {**os.environ, **limits, "MLFLOW_TRACKING_URI": project.store.uri, "PYTHONDONTWRITEBYTECODE": "1"}
    # A file, without its folder on the path (-P): no module of ours may be imported before the version's own.
    arguments = [
        "-P",
        doorkeeper.__file__,
        "--model",
        str(folder),
        "--host",
        host,
        "--port",
        str(port),
        "--max-mb",
        str(max_mb),
    ]
    os.execve(sys.executable, [sys.executable, *arguments], environment)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
