"""A search's progress on a terminal: trial, epoch, best score and time left. Where no terminal is, nothing."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from frostline.evidence.trials import TrialRecord


class SearchProgress:
    """One line at the bottom of a terminal, drawn on standard error while the block runs; lines printed meanwhile stand above.

    A context manager. The work is counted in epochs: a trial that ends early counts as whole.
    """

    def __init__(self, num_trials: int, num_epochs: int, *, shown: bool = True, console: Console | None = None) -> None:
        self._num_trials, self._num_epochs = num_trials, num_epochs
        self._done: dict[int, int] = {}
        self._best: float | None = None
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        remaining = TimeRemainingColumn(compact=True)
        self._bar = Progress(
            *columns, remaining, console=console, transient=True, disable=not (shown and console.is_terminal)
        )
        self._task = self._bar.add_task("search", total=num_trials * num_epochs)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def share(self) -> float:
        """How much of the work is done, from 0 to 1."""
        return sum(self._done.values()) / (self._num_trials * self._num_epochs)

    def epoch(self, trial: int, epoch: int, score: float) -> None:
        """Epoch `epoch` of a trial is done, with this validation accuracy."""
        self._best = max(self._best or 0.0, score)
        self._done[trial] = epoch
        self._show(f"trial {trial + 1}/{self._num_trials} · epoch {epoch}/{self._num_epochs}")

    def end(self, trial: TrialRecord) -> None:
        """A trial goes no further."""
        self._done[trial.number] = self._num_epochs
        if trial.score is not None:
            self._best = max(self._best or 0.0, trial.score)
        self._show(f"trial {trial.number + 1}/{self._num_trials} · ended")

    def _show(self, text: str) -> None:
        best = "" if self._best is None else f" · best {self._best:.4f}"
        self._bar.update(self._task, description=text + best, completed=sum(self._done.values()))
