"""The engine that `scale.engine` names."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from secrets import token_hex

from frostline.errors import Refused
from frostline.params import Params
from frostline.process import set_variables
from frostline.scale.local import Local
from frostline.scale.work import Engine

NO_RAY = "ray needs the extra of that name, which is not installed. Run `make env EXTRA=ray`"


def has_ray() -> bool:
    """Is Ray installed?"""
    return importlib.util.find_spec("ray") is not None


def _close_doors() -> dict[str, str]:
    """What a Ray of this stage's own is told, before it is loaded: nobody else may use it, and no other machine can."""
    token = os.environ.get("RAY_AUTH_TOKEN") or _draw_token()
    # Without clusters, which is what Ray does by itself on macOS, it listens at 127.0.0.1; else at every address of the machine.
    return {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@cache
def _draw_token() -> str:
    """One for the whole process: Ray's library reads it once."""
    return token_hex(32)


@contextmanager
def open_engine(params: Params) -> Iterator[Engine]:
    """The engine of these params, which ends with the block; Refused where it is Ray, and that is not installed."""
    if params.scale.engine == "local":
        yield Local(params.tune.workers)
        return
    if not has_ray():
        raise Refused(f"scale.engine: {NO_RAY}.")
    # Or Ray's word of a node that died, which we say in one line, is a page.
    told = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", **({} if params.scale.address else _close_doors())}
    with set_variables(told):
        from frostline.scale.cluster import Cluster  # takes two seconds

        with Cluster(params.scale) as cluster:
            yield cluster
