"""What a plan says to people. No stage depends on these words."""

from frostline.planning.depths import Reach
from frostline.planning.storage import Storage


def describe_storage(storage: Storage, wanted_views: int, budget_gb: float) -> list[str]:
    """What differs from storing everything, in a line each; empty where nothing does."""
    lines = [
        f"BUDGET: depth {depth} is not stored but computed from depth {source} whenever it is read, "
        f"to stay within storage.budget_gb ({budget_gb:g})"
        for depth, source in storage.sources.items()
        if depth != source
    ]
    return [*describe_budget(storage.views, wanted_views, budget_gb), *lines]


def describe_budget(views: int, wanted: int, budget_gb: float) -> list[str]:
    """The line that says so where there are fewer views than wanted."""
    if views >= wanted:
        return []
    return [
        f"BUDGET: {views} view{'s' * (views > 1)} of each image instead of {wanted}, to stay within storage.budget_gb "
        f"({budget_gb:g}): epochs repeat them. Raise storage.budget_gb for more"
    ]


def describe_reach(reach: Reach) -> list[str]:
    """How deep a search goes and why, where params.yaml leaves that open; empty where it does not."""
    if reach.limit == "given":
        return []
    why = {
        "cuts": "all blocks of the base",
        "bytes": "one more would not fit into storage.budget_gb with all views",
        "minutes": f"a trial one block deeper would take {reach.deeper or 0:.2g} minutes",
    }[reach.limit]
    return [
        f"depths {reach.first} to {reach.last} are searched, {why}; a trial at depth {reach.last} takes nominally "
        f"{reach.minutes:.2g} minutes"
    ]
