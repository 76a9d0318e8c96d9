"""Pre-trained networks: built, filled with weights, cut at block boundaries and joined again.

Keras is imported with the first name that needs it; `fetch_weights` alone does without.
"""

import importlib
from typing import TYPE_CHECKING, Any

from frostline.backbones.files import fetch_weights

if TYPE_CHECKING:
    from frostline.backbones.bases import Base, Cut, build_base, load_base
    from frostline.backbones.cost import flops_of
    from frostline.backbones.splitting import build_bridge, build_prefix, build_suffix, join_base

__all__ = [
    "Base",
    "Cut",
    "build_base",
    "build_bridge",
    "build_prefix",
    "build_suffix",
    "fetch_weights",
    "flops_of",
    "join_base",
    "load_base",
]

_HOMES = {
    "Base": "bases",
    "Cut": "bases",
    "build_base": "bases",
    "load_base": "bases",
    "flops_of": "cost",
    "build_bridge": "splitting",
    "build_prefix": "splitting",
    "build_suffix": "splitting",
    "join_base": "splitting",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
