"""A client of MLflow's that waits while its server is away, and says so."""

import functools
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from frostline.errors import Refused, first_line, redact

PAUSE_S = 2.0
ANSWER_S = 5.0  # in which a server must say that it is there, before any work
AWAY = re.compile(
    r"Max retries exceeded|Failed to establish|Connection (refused|reset|aborted)|RemoteDisconnected|timed out"
    r"|too many \d+ error|error code 50[234]"
)


class PatientClient(MlflowClient):
    """As MLflow's; each call is made again while the server does not answer, for `patience_s` at most."""

    def __init__(self, uri: str, patience_s: float) -> None:
        super().__init__(tracking_uri=uri, registry_uri=uri)
        self._uri, self._patience_s = uri, patience_s
        self._away_since: float | None = None  # one call may be made inside another

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found
        return functools.partial(_call, self, found)


def _call(client: PatientClient, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    while True:
        try:
            result = method(*arguments, **options)
        except (MlflowException, OSError) as error:  # of the last kind are those of requests
            if not AWAY.search(str(error)):
                raise
            _wait(client, error)
            continue
        if client._away_since is not None:
            _say(f"{redact(client._uri)} is back after {time.monotonic() - client._away_since:.0f} s")
            client._away_since = None
        return result


def _wait(client: PatientClient, error: Exception) -> None:
    limit = client._patience_s
    if client._away_since is None:
        client._away_since = time.monotonic()
        _say(f"{redact(client._uri)} does not answer ({first_line(error, 120)}); waiting up to {limit:g} s for it")
    if time.monotonic() - client._away_since > limit:
        raise Refused(
            f"The tracking server {redact(client._uri)} was away for more than {limit:g} s (tracking.patience_s). "
            "What is finished is kept; start it, and `dvc repro` goes on."
        ) from error
    time.sleep(PAUSE_S)


def _say(text: str) -> None:
    print(f"tracking: {redact(text)}", file=sys.stderr, flush=True)


def refuse_silent(uri: str) -> None:
    """Raises Refused where a server does not answer at all within ANSWER_S; what it answers does not matter here."""
    try:
        with urllib.request.urlopen(f"{_bare(uri).rstrip('/')}/health", timeout=ANSWER_S):
            pass
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError) as error:
        raise Refused(
            f"The tracking store {redact(uri)} cannot be used: {first_line(error)}. Start the server, or change tracking.uri or "
            "MLFLOW_TRACKING_URI."
        ) from error


def _bare(uri: str) -> str:
    return re.sub(r"(?<=://)[^/]*@", "", uri)
