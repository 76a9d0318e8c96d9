"""How deep a search goes where `tune.space.unfrozen_blocks` says `all` or `auto`.

Pure, of params, network and numbers of images: no measured second is asked, so that the same project means the same study on every
machine and in every run. Numbers of trials and of epochs are not asked either: to change them is no reason for another pass over the
prefix. `extract` decides, the first stage that has the network, and writes it down; `frostline plan` says it beforehand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from frostline.errors import Refused
from frostline.params import Deepest, Params
from frostline.planning.storage import count_room, count_rows

if TYPE_CHECKING:
    from frostline.bases.base import Base

# What `auto` means unless it says otherwise: minutes of a trial, and 1e9 operations a second.
MINUTES, GFLOPS = 1.0, 20.0
NUMBER_BYTES = 2  # of a feature: float16
# A training step computes forward and, about twice that, backward (Hobbhahn and Sevilla, Epoch AI, 2021).
STEP = 3


@dataclass(frozen=True)
class Network:
    """What a base says of its depths: numbers in the map at each cut, FLOPs of an image above each; pooled: numbers of all cuts."""

    name: str
    map_sizes: Sequence[int]
    suffix_flops: Sequence[int]
    pooled: int


@dataclass(frozen=True)
class Images:
    """Images of each split; trained: of train and val, those that there are `views` of, the plain one among them; mirrored: is
    the mirrored plain image read, too?"""

    train: int
    val: int
    test: int
    trained: int
    views: int
    mirrored: bool

    @property
    def stored(self) -> tuple[int, int, int]:
        """Images of which there are views, others of train and val, and the number of views."""
        return self.trained, self.train + self.val - self.trained, self.views


@dataclass(frozen=True)
class Reach:
    """The first and the last depth of a search.

    limit: what ends it: `given` by params, all `cuts` of the base, the `bytes` or the `minutes` that are allowed. minutes:
    nominal, of a trial at the last depth; deeper: one block further, None where there is none.
    """

    first: int
    last: int
    limit: Literal["given", "cuts", "bytes", "minutes"]
    minutes: float
    deeper: float | None


def describe_network(base: "Base", flops: Mapping[str, Any]) -> Network:
    """What counts of a base for its depths; flops: of `flops_of`."""
    from frostline.bases.cuts import choose_pooled

    pooled = 2 * sum(cut.shape[-1] for cut in choose_pooled(base))  # of each channel a mean and a maximum
    return Network(base.name, [math.prod(cut.shape) for cut in base.cuts], flops["suffix"], pooled)


def find_reach(params: Params, network: Network, images: Images) -> Reach:
    """The depths of the search; Refused where the base has not so many blocks."""
    first, last = params.tune.space.unfrozen_blocks
    blocks = len(network.map_sizes) - 1
    if first > blocks or (isinstance(last, int) and last > blocks):
        given = first if first > blocks else last
        raise Refused(
            f"tune.space.unfrozen_blocks: {network.name} has {blocks} blocks below its output; given was {given}. "
            f"`frostline blocks {network.name}` lists them."
        )
    size, budget = params.base.image_size, params.storage.budget_gb
    rows = count_rows(*images.stored, mirrored=images.mirrored)
    room = count_room(budget, images.trained, images.views, size) - NUMBER_BYTES * network.pooled * images.test
    allowed = last if isinstance(last, Deepest) else Deepest()
    most, speed = allowed.minutes or MINUTES, allowed.gflops or GFLOPS
    minutes = [count_minutes(flops, images, speed) for flops in network.suffix_flops]
    limit: Literal["given", "cuts", "bytes", "minutes"] = "given"
    if last == "all":
        last, limit = blocks, "cuts"
    elif not isinstance(last, int):
        last, limit = blocks, "cuts"
        for depth in range(max(1, first), blocks + 1):
            fits = count_bytes(network, max(1, first), depth, rows) <= room
            if not fits or minutes[depth] > most:
                last, limit = max(first, depth - 1), "minutes" if fits else "bytes"
                break
    assert isinstance(last, int)
    return Reach(first, last, limit, minutes[last], minutes[last + 1] if last < blocks else None)


def count_minutes(suffix_flops: int, images: Images, gflops: float) -> float:
    """Nominal minutes of a trial that sees every view once, without compiling."""
    return images.views * (STEP * images.train + images.val) * suffix_flops / (60e9 * gflops)


def count_bytes(network: Network, first: int, depth: int, rows: int) -> int:
    """Bytes of the features that a search down to a depth cannot do without; see `plan_storage`."""
    stored = sum(network.map_sizes[each] for each in {first, depth})
    return NUMBER_BYTES * rows * (network.pooled + stored)
