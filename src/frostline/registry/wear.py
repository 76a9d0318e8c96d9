"""Which comparisons were judged on which test images: on the registered model, so that all who share it share the budget."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from frostline.evidence.budget import Budget
from frostline.registry.versions import Version
from frostline.tracking.store import Store

COMPARED = "frostline.compared."  # tags of the registered model: the prefix, then split, challenger and champion
SKETCH = 64  # digests of images that stand for a split
SAME = 0.1  # share of images in common from which on two splits are one


@dataclass(frozen=True)
class Sketch:
    """A test split by the least digests of its images, so that two can be compared (Broder, "On the resemblance of documents", 1997)."""

    digests: tuple[str, ...]

    @property
    def name(self) -> str:
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()[:12]

    def resembles(self, other: "Sketch") -> bool:
        """Do the two have more than SAME of their images in common, as far as their sketches tell?"""
        least = sorted({*self.digests, *other.digests})[:SKETCH]
        common = set(self.digests) & set(other.digests) & set(least)
        return len(common) > SAME * len(least)


def make_sketch(sha256s: Iterable[str]) -> Sketch:
    """The sketch of a split whose images' files have these sha256."""
    return Sketch(tuple(sorted({hashlib.sha256(each.encode()).hexdigest()[:8] for each in sha256s})[:SKETCH]))


def load_budget(store: Store, split: Sketch, challenger: Version, champion: Version) -> Budget:
    """What was left for this comparison: as it was when the same two were first compared on this split, else as it is now."""
    entries = _list_entries(store, challenger.name)
    own = entries.get(_key(split, challenger, champion))
    if own is not None:
        return Budget(own["uses"], own["before"])
    return count_budget(store, challenger.name, split)


def count_budget(store: Store, name: str, split: Sketch) -> Budget:
    """What is left on a split: each comparison counts whose test images were for more than a tenth the same."""
    found = [entry for entry in _list_entries(store, name).values() if Sketch(tuple(entry["split"])).resembles(split)]
    return Budget(len(found), sum(entry["passed"] for entry in found))


def record_comparison(
    store: Store, split: Sketch, challenger: Version, champion: Version, budget: Budget, passed: bool
) -> None:
    """Enters a comparison. The same two on the same split stay one: whoever asks again learns nothing new."""
    entry = {"split": split.digests, "uses": budget.uses, "before": budget.passed, "passed": passed}
    store.client.set_registered_model_tag(challenger.name, _key(split, challenger, champion), json.dumps(entry))


def _key(split: Sketch, challenger: Version, champion: Version) -> str:
    return f"{COMPARED}{split.name}.{challenger.number}.{champion.number}"


def _list_entries(store: Store, name: str) -> dict[str, dict]:  # type: ignore[type-arg]
    tags = store.client.get_registered_model(name).tags
    return {key: json.loads(value) for key, value in tags.items() if key.startswith(COMPARED)}
