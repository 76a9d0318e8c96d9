"""The seam between a stage and where it runs: work on tasks, and the workers of a study."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


def hand_over(piece: Any, *task: Any) -> Any:
    """The piece as it is: for work that nothing is written of."""
    return piece


@dataclass(frozen=True, eq=False)
class Work:
    """What is done with each task of a stage, in whatever process; its functions are those of modules, found by their names.

    begin: `begin(*facts)` is what a process keeps between its tasks. make: `make(kept, *task)` yields what a task comes to,
    piece by piece; it writes nothing, so that it may be done again. keep: `keep(piece, *task)` puts a piece where it
    belongs, once; its answer is what the stage sees. here: gives what `begin` would, where this process has it already.
    on_gpu: does it compute on a GPU, where workers have one?
    """

    make: Callable[..., Iterator[Any]]
    begin: Callable[..., Any]
    facts: tuple[Any, ...] = ()
    keep: Callable[..., Any] = hand_over
    here: Callable[[], Any] | None = None
    on_gpu: bool = False


class Engine(Protocol):
    """Where the work of a stage runs."""

    @property
    def workers(self) -> int:
        """Of a study, at a time."""
        ...

    def divide(self, number: int, most: int) -> Iterator[slice]:
        """Parts of so many rows that are tasks of their own; `most` is what one of them may hold where it has to be sent."""
        ...

    def map(
        self, work: Work, tasks: Iterable[tuple[Any, ...]], *, threads: int = 0, processes: int = 0, ahead: int = 1
    ) -> Generator[Any, None, None]:
        """What `work.keep` answers to each piece of each task, in the tasks' order.

        threads, processes: so many work where this machine alone does; in neither, this thread. ahead: tasks that may be
        begun there before the first of them is taken. An error of a task is raised as it is.
        """
        ...

    def run_workers(
        self,
        run: Callable[..., Iterator[str]],
        facts: tuple[Any, ...],
        number: int,
        *,
        here: Callable[[], Iterator[str]],
        lost: Callable[[str], None],
        gpus: Sequence[str] = (),
        one_machine: bool = False,
    ) -> list[str]:
        """Runs `run(*facts)` in so many processes until all have come to their end, and prints the lines that it yields.

        here: the same in this process, for a single worker that needs no other. lost: is called, with the reason, when one
        has ended early. gpus: those of this machine, by name. one_machine: must all run here, beside a
        study in a file? Returns the reasons of those that were not replaced.
        """
        ...
