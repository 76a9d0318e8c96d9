"""What a plan says to people. No stage depends on these words."""

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
