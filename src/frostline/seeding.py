"""Seeds derived by name, and results in the order of their tasks: the order of work changes nothing."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar


def derive_seed(root: int, *names: object) -> int:
    """A 31-bit seed that depends on `root` and `names` alone.

    The names are hashed with their boundaries, so ("a", "bc") and ("ab", "c") differ.

    >>> derive_seed(7, "augment", "cat.jpg", 1), derive_seed(7, "augment", "cat.jpg", 2)
    (1608367916, 679273324)
    """
    text = "\x1f".join([str(root), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 33


Result = TypeVar("Result")


def in_order(
    pool: Executor, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]], ahead: int
) -> Iterator[Result]:
    """`function(*task)` of each task in the tasks' order, computed in `pool`; at most `ahead` results in memory."""
    pending: deque[Future[Result]] = deque()
    for task in tasks:
        pending.append(pool.submit(function, *task))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
