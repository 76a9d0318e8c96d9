"""Settings of a user's own that reach into the libraries: what was set aside, and what cannot be."""

import json
import os
from pathlib import Path

from frostline import TOLD
from frostline.errors import redact

DEFAULTS = {"image_data_format": "channels_last", "floatx": "float32", "epsilon": 1e-7}
# What Keras itself refuses to start with.
ALLOWED = {"image_data_format": ("channels_last", "channels_first"), "floatx": ("float16", "float32", "float64")}


def ignored_settings() -> list[str]:
    """What is set on this machine for other work and does not count here, a line each."""
    said = []
    if told := os.environ.get(TOLD):
        said.append(f"set in the environment, and without effect here: {redact(told)}")
    given = _keras_settings() or {}
    odd = [f"{key}: {given[key]}" for key, value in DEFAULTS.items() if given.get(key, value) != value]
    if odd:
        said.append(f"set in {keras_file()}, and without effect here: {', '.join(odd)}")
    return said


def settings_problems() -> list[str]:
    """What is set on this machine and keeps a library from starting."""
    given = _keras_settings()
    if given is None:
        return []
    problems = [
        f"{keras_file()}: {key} is {given[key]!r}, with which Keras does not start; allowed: {', '.join(allowed)}"
        for key, allowed in ALLOWED.items()
        if key in given and given[key] not in allowed
    ]
    if not isinstance(given.get("epsilon", 1e-7), float):
        problems.append(
            f"{keras_file()}: epsilon is {given['epsilon']!r}, with which Keras does not start; 1e-7 is usual"
        )
    return problems


def keras_file() -> Path:
    """Where Keras reads its settings."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser() / "keras.json"


def _keras_settings() -> dict[str, object] | None:
    try:
        given = json.loads(keras_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # Keras goes on without it, too
    return given if isinstance(given, dict) else None
