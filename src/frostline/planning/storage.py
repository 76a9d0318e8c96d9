"""What is stored and what is computed again, so that views and features stay within `storage.budget_gb`.

Pure: `frostline plan` says with it what `augment` and `extract` then do with it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from frostline.errors import Refused
from frostline.params import Augment, Tune

# Views may take so much of the budget. `augment` cannot know how large features are: it runs without the network.
VIEWS_SHARE = 0.5
# Albumentations' transforms that change left and right.
FLIPS = {"HorizontalFlip", "D4", "SquareSymmetry"}


@dataclass(frozen=True)
class Storage:
    """What `extract` writes.

    views: of each image that is trained on, the plain one among them. sources: for each depth of the search, from 1 on,
    the depth whose maps are stored for it: itself, or a deeper one whose maps are taken through the blocks between at every
    reading. bytes: on disk, by stored depth; pooled: bytes of all cuts pooled, which are always stored.
    """

    views: int
    sources: Mapping[int, int]
    bytes: Mapping[int, int]
    pooled: int

    @property
    def stored(self) -> list[int]:
        """The stored depths, ascending."""
        return sorted(self.bytes)

    @property
    def total(self) -> int:
        """Bytes of all features."""
        return self.pooled + sum(self.bytes.values())


def fit_views(num_images: int, image_size: int, wanted: int, budget_gb: float) -> int:
    """How many views of each training image are kept: at most `wanted`, at least the plain one, which takes no space here.

    >>> fit_views(2000, 160, wanted=8, budget_gb=20), fit_views(2000, 160, wanted=8, budget_gb=1)
    (8, 4)
    """
    return max(1, min(wanted, 1 + int(VIEWS_SHARE * budget_gb * 1e9 // view_bytes(num_images, image_size))))


def view_bytes(num_images: int, image_size: int) -> int:
    """Bytes of one view of all images, uint8 RGB."""
    return num_images * image_size**2 * 3


def plan_storage(
    row_bytes: Mapping[int, int],
    pooled_bytes: int,
    prefix_flops: Sequence[int],
    num_images: int,
    num_plain: int,
    views: int,
    image_size: int,
    budget_gb: float,
    *,
    mirrored: bool = False,
) -> Storage:
    """Which depths are stored, and how many views of them, beside `views` views of the images.

    row_bytes: of one image's map, by depth; pooled_bytes: of its pooled cuts; prefix_flops: below the cut, by depth.
    num_images: images of which there are views; num_plain: those of which only the plain one is read; mirrored: is the
    mirrored plain image read, too? The shallowest and
    the deepest cut are always stored, with as many views as fit. Of the others those are dropped first whose maps cost the
    fewest FLOPs for each byte that they free. Raises Refused where not even one view fits.
    """
    depths = sorted(row_bytes)
    needed = {depths[0], depths[-1]} if depths else set()
    room = count_room(budget_gb, num_images, views, image_size)

    def rows(views: int) -> int:
        return count_rows(num_images, num_plain, views, mirrored=mirrored)

    def size(chosen: Collection[int]) -> int:
        return (pooled_bytes + sum(row_bytes[depth] for depth in chosen)) * rows(views)

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
    by_depth = {depth: row_bytes[depth] * rows(views) for depth in sorted(stored)}
    return Storage(views, find_sources(depths, stored), by_depth, pooled_bytes * rows(views))


def count_rows(num_images: int, num_plain: int, views: int, *, mirrored: bool) -> int:
    """Rows of features: of every view of the images, of the others' plain image, and of the plain ones mirrored."""
    return num_images * views + num_plain + mirrored * (num_images + num_plain)


def count_room(budget_gb: float, num_images: int, views: int, image_size: int) -> float:
    """Bytes of the budget that views of the images leave."""
    return budget_gb * 1e9 - (views - 1) * view_bytes(num_images, image_size)


def find_sources(depths: Collection[int], stored: Collection[int]) -> dict[int, int]:
    """For each depth the nearest stored one that is not above it in the network.

    >>> find_sources([1, 2, 3, 4], {1, 4})
    {1: 1, 2: 4, 3: 4, 4: 4}
    """
    return {depth: min(other for other in stored if other >= depth) for depth in depths}


def list_depths(tune: Tune) -> list[int]:
    """The depths whose maps a search starts from: those of its space from 1 on, and 0 where the head is not pooled."""
    first, last = tune.space.depths
    return [*([0] if tune.pooling == "flatten" else []), *range(max(1, first), last + 1)]


def flips(augment: Augment) -> bool:
    """Is a mirror image the same thing? Where a horizontal flip is among the transforms, its author says so."""
    names = {name for entry in augment.transforms for name in entry}
    return augment.views > 1 and bool(names & FLIPS)


def trains_on_val(asked: str, val_is_drawn: bool) -> bool:
    """Is the final model trained on validation images, too? See `refit.train_on_val`."""
    return asked == "always" or (asked == "drawn" and val_is_drawn)
