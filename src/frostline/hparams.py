"""What a trial tries: each hyperparameter declared once, for params, search, figures, tables and MLflow alike."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Hparam:
    """What is known of one hyperparameter beside its name.

    kind: `real` (a number of a range), `depth` (whole, 0 and up, both ends searched) or `choice` (one of a list).
    low, high: what a range may reach; allowed: what a list may hold, None for whole numbers from 0 up.
    baseline: where trial 0 stands in its range or list: its `low` end, its `middle` (of the logarithm in a logarithmic
    range), or the `first` of the list; depth is 0 there. used: whether a trial with the values drawn so far uses it.
    label: for figures, in at most two lines; form: of a value in a table; shown: among the first columns of a run table;
    default: what `tune.space` may leave out, None where it may not.
    """

    kind: Literal["real", "depth", "choice"]
    label: str
    low: float = 0.0
    high: float = 0.0
    allowed: tuple[str, ...] | None = None
    baseline: Literal["low", "middle", "first"] = "middle"
    used: Callable[[Mapping[str, Any]], bool] = lambda _: True
    form: str = ".3f"
    shown: bool = False
    default: Any = None

    @property
    def is_logarithmic(self) -> bool:
        """Is it read in powers of ten?"""
        return self.form.endswith("g") and self.kind == "real"


def _declare(kind: Literal["real", "depth", "choice"], label: str, **facts: Any) -> Any:
    return field(metadata={"hparam": Hparam(kind, label, **facts)})


def _is_unfrozen(drawn: Mapping[str, Any]) -> bool:
    return bool(drawn["unfrozen_blocks"])


@dataclass(frozen=True)
class Hparams:
    """One trial's choice, in the order in which it is drawn. A value that the trial does not use is None.

    >>> head_only = Hparams(0, 0.2, 1e-3, None, 1e-4, 0.0, "adam", 0, "all")
    >>> Hparams.from_record(head_only.to_record()) == head_only
    True
    """

    unfrozen_blocks: int = _declare("depth", "unfrozen\nblocks", form=".0f", shown=True)
    dropout: float = _declare("real", "dropout", high=0.95, shown=True)
    head_learning_rate: float = _declare(
        "real", "learning rate\nof the head", low=1e-8, high=10.0, form=".2g", shown=True
    )
    suffix_learning_rate: float | None = _declare(
        "real", "learning rate\nof the suffix", low=1e-8, high=10.0, baseline="low", used=_is_unfrozen, form=".2g"
    )
    weight_decay: float = _declare("real", "weight\ndecay", high=1.0, form=".2g")
    label_smoothing: float = _declare("real", "label\nsmoothing", high=0.5, baseline="low")
    optimizer: str = _declare("choice", "optimizer", allowed=("adam", "sgd", "rmsprop"), baseline="first")
    # Units of the hidden layer of the head; 0 = none.
    head_units: int = _declare("choice", "head\nunits", baseline="first", form=".0f")
    # What the head sees, pooled: every cut of the base (mean and maximum of each), or the last one alone.
    head_input: str = _declare("choice", "head\nsees", allowed=("last", "all"), baseline="first", default=["all"])

    def to_record(self) -> dict[str, Any]:
        """The choice as plain values, without what it does not use."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The choice from `to_record`'s form."""
        return cls(**{**dict.fromkeys(HPARAMS), **record})


HPARAMS: Mapping[str, Hparam] = {each.name: each.metadata["hparam"] for each in fields(Hparams)}
