"""What is stored and what is computed again, so that views and features stay within `storage.budget_gb`.

Pure: `frostline plan` says with it what `augment` and `extract` then do with it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from frostline.errors import Refused

# Views may take so much of the budget. `augment` cannot know how large features are: it runs without the network.
VIEWS_SHARE = 0.5


@dataclass(frozen=True)
class Storage:
    """What `extract` writes.

    views: of each training picture, the plain one among them. sources: for each depth of the search the depth that is
    stored for it: itself, or a deeper one whose features are taken through the blocks between at every reading.
    bytes: on disk, by stored depth.
    """

    views: int
    sources: Mapping[int, int]
    bytes: Mapping[int, int]

    @property
    def stored(self) -> list[int]:
        """The stored depths, ascending."""
        return sorted(self.bytes)


def fit_views(num_images: int, image_size: int, wanted: int, budget_gb: float) -> int:
    """How many views of each training picture are kept: at most `wanted`, at least the plain one, which takes no space here."""
    return max(1, min(wanted, 1 + int(VIEWS_SHARE * budget_gb * 1e9 // view_bytes(num_images, image_size))))


def view_bytes(num_images: int, image_size: int) -> int:
    """Bytes of one view of all pictures, uint8 RGB."""
    return num_images * image_size**2 * 3


def plan_storage(
    row_bytes: Mapping[int, int],
    prefix_flops: Sequence[int],
    num_train: int,
    num_val: int,
    views: int,
    image_size: int,
    budget_gb: float,
) -> Storage:
    """Which depths are stored, and how many views of them, beside `views` views of the pictures.

    row_bytes: of one picture's features, by depth; prefix_flops: below the cut, by depth. The shallowest and the deepest
    cut are always stored, with as many views as fit. Of the others those are dropped first whose features cost the
    fewest FLOPs for each byte that they free. Raises Refused where not even one view fits.
    """
    depths = sorted(row_bytes)
    needed = {depths[0], depths[-1]}
    room = budget_gb * 1e9 - (views - 1) * view_bytes(num_train, image_size)

    def size(chosen: Collection[int]) -> int:
        return sum(row_bytes[depth] for depth in chosen) * (num_train * views + num_val)

    def extra_flops(chosen: Collection[int]) -> int:
        return sum(prefix_flops[depth] - prefix_flops[source] for depth, source in find_sources(depths, chosen).items())

    while views > 1 and size(needed) > room:
        views -= 1
    if size(needed) > room:
        raise Refused(
            f"storage.budget_gb: features at depths {sorted(needed)} take {size(needed) / 1e9:.2f} GB for one view, of which "
            f"{max(room, 0) / 1e9:.2f} of {budget_gb:g} GB are left. Raise it, or lower tune.space.unfrozen_blocks."
        )
    stored = set(depths)
    while size(stored) > room:
        before = extra_flops(stored)
        stored.remove(
            min(
                sorted(stored - needed),
                key=lambda depth: (extra_flops(stored - {depth}) - before) / row_bytes[depth],
            )
        )
    return Storage(views, find_sources(depths, stored), {depth: size([depth]) for depth in sorted(stored)})


def find_sources(depths: Collection[int], stored: Collection[int]) -> dict[int, int]:
    """For each depth the nearest stored one that is not above it in the network."""
    return {depth: min(other for other in stored if other >= depth) for depth in depths}
