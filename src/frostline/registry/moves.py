"""Moves of the alias `champion`: promotion, rollback, and the history of both."""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from frostline.errors import Refused
from frostline.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Version,
    download_version,
    load_version,
    number_at,
)
from frostline.tracking.lineage import user_name
from frostline.tracking.store import Store, exclusive

HISTORY = "frostline.move."  # tags of the registered model: the prefix, then the time


@dataclass(frozen=True)
class Move:
    """One decision about the champion: who, when, from which version to which, the verdict, and why.

    verdict: accepted, refused, forced or rollback; only `refused` leaves the alias where it was.
    """

    at: str
    who: str
    from_version: int | None
    to_version: int
    verdict: str
    reason: str

    @property
    def moved(self) -> bool:
        return self.verdict != "refused"


def record_verdict(store: Store, version: Version, verdict: str, reason: str, record: Mapping[str, Any]) -> None:
    """Writes the verdict with all its numbers on the version, accepted or refused."""
    tags = {
        "frostline.verdict": f"{verdict} {_now()}",
        "frostline.verdict.reason": reason,
        "frostline.verdict.record": json.dumps(record),
        **{
            f"frostline.gate.{check['name']}": f"{'passed' if check['passed'] else 'FAILED'}: {check['message']}"
            for check in record["checks"]
        },
    }
    for key, value in tags.items():
        store.client.set_model_version_tag(version.name, str(version.number), key, value)


def count_test_use(store: Store, version: Version) -> int:
    """How often the test split has now been used on this version, this time included."""
    uses = version.test_uses + 1
    store.client.set_model_version_tag(version.name, str(version.number), "frostline.test_uses", str(uses))
    return uses


def move_champion(store: Store, version: Version, expected: int | None, verdict: str, reason: str) -> Move:
    """Points `champion` at the version, and `previous` at the one before.

    Args:
        expected: the champion the decision was made against. Raises Refused where another has taken its place since.
    """
    with exclusive(store, "registry"):
        now = number_at(store, version.name, CHAMPION)
        if now != expected:
            raise Refused(
                f"The champion of {version.name} changed while this was decided: it was {expected or 'none'}, now it "
                f"is version {now or 'none'}. Nothing was moved; run the command again to decide against that one."
            )
        move = _record(store, version.name, now, version.number, verdict, reason)
        client = store.client
        if now is not None and now != version.number:
            client.set_registered_model_alias(version.name, PREVIOUS, str(now))
        client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
        if number_at(store, version.name, CHALLENGER) == version.number:
            client.delete_registered_model_alias(version.name, CHALLENGER)
    return move


def record_refusal(store: Store, version: Version, champion: int | None, reason: str) -> Move:
    """Enters a refused promotion in the history; no alias moves."""
    return _record(store, version.name, champion, version.number, "refused", reason)


def rollback(store: Store, name: str, to: int | None, reason: str, folder: Path) -> Move:
    """Moves `champion` back: to the version it came from, or to the one given.

    The version's files are checked first. Raises Refused where there is nothing to go back to.
    """
    current = number_at(store, name, CHAMPION)
    if current is None:
        raise Refused(f"{name} has no champion, so there is nothing to roll back.")
    if to is None:
        to = next(
            (
                move.from_version
                for move in reversed(list_moves(store, name))
                if move.verdict != "rollback" and move.moved and move.to_version == current
            ),
            None,
        )
        if to is None:
            raise Refused(
                f"Version {current} of {name} is the first champion; there is none before it. --to VERSION names another."
            )
    if to == current:
        raise Refused(f"Version {to} of {name} is the champion already.")
    version = load_version(store, name, to)
    download_version(store, version, folder)
    return move_champion(store, version, current, "rollback", reason)


def list_moves(store: Store, name: str) -> list[Move]:
    """Every decision, oldest first."""
    tags = store.client.get_registered_model(name).tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(HISTORY)]


def _record(store: Store, name: str, before: int | None, after: int, verdict: str, reason: str) -> Move:
    move = Move(_now(), f"{user_name()}@{socket.gethostname()}", before, after, verdict, reason)
    store.client.set_registered_model_tag(name, f"{HISTORY}{time.time_ns():020d}", json.dumps(asdict(move)))
    return move


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
