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


class Patience:
    """How long a server that is away is waited for, and what is said of it.

    speaker: what a line begins with; place: the server, as it may be shown; limit_s: seconds; name: what a refusal calls it.
    """

    def __init__(self, speaker: str, place: str, limit_s: float, name: str) -> None:
        self._speaker, self._place, self._limit_s, self._name = speaker, place, limit_s, name
        self._away_since: float | None = None  # one call may be made inside another

    def wait(self, error: Exception) -> None:
        """Waits a moment, the first time with a word; Refused where the server has been away for too long."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._say(f"does not answer ({first_line(error, 120)}); waiting up to {self._limit_s:g} s for it")
        if time.monotonic() - self._away_since > self._limit_s:
            raise Refused(
                f"{self._name} {self._place} was away for more than {self._limit_s:g} s (tracking.patience_s). "
                "What is finished is kept; start it, and `dvc repro` goes on."
            ) from error
        time.sleep(PAUSE_S)

    def end(self) -> None:
        """Says that the server is back, if it was away."""
        if self._away_since is not None:
            self._say(f"is back after {time.monotonic() - self._away_since:.0f} s")
            self._away_since = None

    def _say(self, text: str) -> None:
        print(f"{self._speaker}: {redact(f'{self._place} {text}')}", file=sys.stderr, flush=True)


class PatientClient(MlflowClient):
    """As MLflow's; each call is made again while the server does not answer, for `patience_s` at most."""

    def __init__(self, uri: str, patience_s: float) -> None:
        super().__init__(tracking_uri=uri, registry_uri=uri)
        self._patience = Patience("tracking", redact(uri), patience_s, "The tracking server")

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
            client._patience.wait(error)
            continue
        client._patience.end()
        return result


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
