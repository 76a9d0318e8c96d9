"""What a trial tries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Hparams:
    """One trial's choice. `suffix_learning_rate` is None where nothing of the base is unfrozen."""

    dropout: float
    unfrozen_blocks: int
    head_learning_rate: float
    suffix_learning_rate: float | None
    weight_decay: float
    label_smoothing: float
    optimizer: str
    head_units: int

    def to_record(self) -> dict[str, Any]:
        """The choice as plain values, without what it does not use."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The choice from `to_record`'s form."""
        return cls(**{"suffix_learning_rate": None, **record})
