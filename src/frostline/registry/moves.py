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
MOVING = "frostline.moving"  # and while a move is made, that move: what a killed process began, the next one finishes
RECORD = "frostline.verdict.record"  # tag of a version


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
        RECORD: json.dumps(record),
        **{
            f"frostline.gate.{check['name']}": f"{'passed' if check['passed'] else 'FAILED'}: {check['message']}"
            for check in record["checks"]
        },
    }
    for key, value in tags.items():
        store.client.set_model_version_tag(version.name, str(version.number), key, value)


def load_verdict(version: Version) -> dict[str, Any] | None:
    """The last verdict on the version with all its numbers; None where it was not judged yet."""
    written = version.tags.get(RECORD)
    return None if written is None else json.loads(written)


def count_test_use(store: Store, version: Version) -> int:
    """How often the test split has now been used on this version, this time included."""
    uses = version.test_uses + 1
    store.client.set_model_version_tag(version.name, str(version.number), "frostline.test_uses", str(uses))
    return uses


def move_champion(
    store: Store,
    version: Version,
    expected: int | None,
    verdict: str,
    reason: str,
    record: Mapping[str, Any] | None = None,
) -> Move:
    """Points `champion` at the version, and `previous` at the one before.

    Args:
        expected: the champion the decision was made against. Raises Refused where another has taken its place since.
        record: the verdict's numbers, which are on the version before the alias is.
    """
    with exclusive(store, "registry"):
        _finish(store, version.name)
        now = number_at(store, version.name, CHAMPION)
        if now != expected:
            raise Refused(
                f"The champion of {version.name} changed while this was decided: it was {expected or 'none'}, now it "
                f"is version {now or 'none'}. Nothing was moved; run the command again to decide against that one."
            )
        key, move = _decide(now, version.number, verdict, reason)
        if record is not None:
            record_verdict(store, version, verdict, reason, {**record, "at": move.at})
        written = json.dumps({"key": key, **asdict(move)})
        store.client.set_registered_model_tag(version.name, MOVING, written)
        _carry_out(store, version.name, key, move)
    return move


def finish_move(store: Store, name: str) -> Move | None:
    """Finishes the move of the champion that a killed process began, if there is one."""
    with exclusive(store, "registry"):
        return _finish(store, name)


def _finish(store: Store, name: str) -> Move | None:
    written = store.client.get_registered_model(name).tags.get(MOVING)
    if written is None:
        return None
    begun = json.loads(written)
    key, move = begun.pop("key"), Move(**begun)
    _carry_out(store, name, key, move)
    return move


def _carry_out(store: Store, name: str, key: str, move: Move) -> None:
    """Each step may have been made before."""
    client = store.client
    if move.from_version not in (None, move.to_version):
        client.set_registered_model_alias(name, PREVIOUS, str(move.from_version))
    client.set_registered_model_alias(name, CHAMPION, str(move.to_version))
    if number_at(store, name, CHALLENGER) == move.to_version:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.set_registered_model_tag(name, key, json.dumps(asdict(move)))
    client.delete_registered_model_tag(name, MOVING)


def record_refusal(store: Store, version: Version, champion: int | None, reason: str) -> Move:
    """Enters a refused promotion in the history; no alias moves."""
    key, move = _decide(champion, version.number, "refused", reason)
    store.client.set_registered_model_tag(version.name, key, json.dumps(asdict(move)))
    return move


def rollback(store: Store, name: str, to: int | None, reason: str, folder: Path) -> Move:
    """Moves `champion` back: to the version it came from, or to the one given.

    The version's files are checked first. One that was killed is finished, and goes no further. Raises Refused where there is
    nothing to go back to.
    """
    current = number_at(store, name, CHAMPION)
    if current is None:
        raise Refused(f"{name} has no champion, so there is nothing to roll back.")
    if begun := finish_move(store, name):
        if begun.verdict == "rollback" and to in (None, begun.to_version):
            return begun
        current = begun.to_version
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


def _decide(before: int | None, after: int, verdict: str, reason: str) -> tuple[str, Move]:
    """A move, and the tag under which the history has it."""
    move = Move(_now(), f"{user_name()}@{socket.gethostname()}", before, after, verdict, reason)
    return f"{HISTORY}{time.time_ns():020d}", move


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
