"""What commands share: the project they stand in, models to answer with, and a free port."""

import errno
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.errors import Refused

if TYPE_CHECKING:
    from frostline.params import Params
    from frostline.registry.versions import Version
    from frostline.serving.model import FrostlineModel
    from frostline.tracking.store import Store

COPIES = Path(".frostline/models")  # of versions whose files lie on a server


@dataclass(frozen=True)
class Project:
    """The checked params of the project around the working directory, and its store, opened."""

    params: "Params"
    store: "Store"

    @property
    def name(self) -> str:
        """The registered model's."""
        return self.params.register_.name

    def open_version(self, number: int | None) -> "tuple[Version, Path]":
        """The champion, or the version given, and its checked files."""
        from frostline.registry.versions import open_version

        return open_version(self.store, self.name, number, COPIES)


def open_project(*, write: bool = False) -> Project:
    """The project, for commands that need its runs; Refused where there is none or its store does not answer.

    write: may the store be made, or changed? A command that only reads leaves it as it is.
    """
    from frostline.params import load_params
    from frostline.process import project_root
    from frostline.tracking.store import open_store

    params = load_params()
    return Project(params, open_store(params.tracking, project_root(), create=write))


def load_file(model: Path) -> "FrostlineModel":
    """The model in a lone `.keras` file; decoding is that of this workspace, and the classes too, unless a list lies beside it."""
    from frostline.files import load_json, sha256_of
    from frostline.params import load_params
    from frostline.serving.model import Card, FrostlineModel

    if not model.is_file():
        raise Refused(f"--model {model} does not exist.")
    params = load_params()
    beside = model.with_name("classes.json")
    rules = params.prepare
    classes = load_json(beside if beside.is_file() else Path(params.paths.prepared) / "classes.json")
    size = params.base.image_size
    card = Card(tuple(classes), size, rules.resize, rules.min_side, rules.max_megapixels, sha256_of(model), rules.bits)
    return FrostlineModel.from_file(model, card)


def free_port(port: int, host: str = "127.0.0.1") -> int:
    """The port, or a free one for 0; raises Refused where it is taken, or the host is no address of this machine."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            free: int = trial.getsockname()[1]
            return free
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise Refused(f"Port {port} is taken. --port 0 takes a free one.") from None
        raise Refused(f"--host {host} is no address of this machine; 127.0.0.1 is, for this machine alone.") from None
