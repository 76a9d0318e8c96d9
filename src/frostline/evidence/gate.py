"""Whether a challenger becomes champion, from numbers alone; nothing is read or written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.errors import some
from frostline.evidence import comparison
from frostline.evidence.budget import Budget
from frostline.evidence.calibration import Floats, Labels, ece_floor
from frostline.evidence.scores import check_predictions, measure
from frostline.params import Promote

MAX_RESAMPLES = 200_000
GOLDEN_TOLERANCE = 1e-4  # of a probability, from one process to another on the same machine


@dataclass(frozen=True)
class Check:
    """One condition of the gate: its name, whether it held, a sentence for people, and the numbers behind it."""

    name: str
    passed: bool
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The gate's decision; accepted when every check passed. `numbers` is flat, for tags and tables."""

    accepted: bool
    checks: tuple[Check, ...]
    numbers: dict[str, float]

    def to_record(self) -> dict[str, Any]:
        """The verdict as plain values for JSON."""
        return asdict(self) | {"checks": [asdict(check) for check in self.checks]}


def decide_promotion(
    labels: Labels,
    challenger: Floats,
    champion: Floats | None,
    class_names: Sequence[str],
    rules: Promote,
    *,
    champion_classes: Sequence[str] | None = None,
    champion_problem: str | None = None,
    model_mb: float | None = None,
    latency_p95_ms: float | None = None,
    golden_difference: float | None = None,
    leaked: Sequence[str] | None = None,
    seen: NDArray[np.bool_] | None = None,
    budget: Budget | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Whether the challenger takes the champion's place; all checks must hold.

    challenger and champion: probabilities (num_images, num_classes) on the same test images; champion is None for the
    first one. champion_classes: those that it knows, where they are others; then both are compared on the shared
    ones. champion_problem: why it could not be scored, and champion is None. model_mb: size of the challenger's file;
    latency_p95_ms: of one image on this machine; golden_difference: largest change of a stored probability in a fresh
    process; leaked: test images that the challenger was trained on, or near duplicates; seen: bool (num_images,), those that the
    champion was trained on, which are left out of the comparison; None where that is not known; budget: what the test split has
    left, whose level the comparison is judged at; None for all of `promote.significance`. What else was not measured (None) fails
    its check.
    """
    level = rules.significance if budget is None else budget.level(rules.significance)
    spent = rules.model_copy(update={"significance": level})
    # The tail of a bootstrap needs draws in it.
    resamples = max(resamples, min(MAX_RESAMPLES, round(20 / level)))
    is_changed = champion is not None and champion_classes is not None and set(champion_classes) != set(class_names)
    sound = _check_sound(labels, challenger, None if is_changed else champion, class_names)
    checks = [sound]
    if champion_problem is not None:
        checks.append(_check_unscored(champion_problem))
    if sound.passed:
        checks.append(_check_test_size(labels, challenger, rules))
        checks.append(_check_floor(labels, challenger, rules))
        if is_changed:
            assert champion is not None and champion_classes is not None
            shared = [index for index, name in enumerate(class_names) if name in champion_classes]
            known = np.isin(labels, shared)
            checks.append(_check_same_classes(class_names, champion_classes, int(known.sum()), len(labels)))
            known &= ~seen if seen is not None else True
            if len(shared) > 1 and known.any():
                ours, theirs = (_restrict(given[known], shared) for given in (challenger, champion))
                places, names = np.searchsorted(shared, labels[known]), [class_names[index] for index in shared]
                checks.append(_check_comparison(places, ours, theirs, spent, resamples, seed))
                checks.append(_check_classes(places, ours, theirs, names, rules))
        elif champion is not None:
            fresh = np.ones(len(labels), bool) if seen is None else ~seen
            if not fresh.all():
                checks.append(_check_seen(labels, challenger, champion, fresh, rules))
            if fresh.any():
                judged = labels[fresh], challenger[fresh], champion[fresh]
                checks.append(_check_comparison(*judged, spent, resamples, seed))
                checks.append(_check_classes(*judged, class_names, rules))
        checks.append(_check_calibration(labels, challenger, rules))
    checks.append(_check_limit("model_size", model_mb, rules.max_model_mb, "MB", "promote.max_model_mb"))
    checks.append(_check_limit("latency_p95", latency_p95_ms, rules.max_latency_ms, "ms", "promote.max_latency_ms"))
    checks.append(
        _check_limit("golden", golden_difference, GOLDEN_TOLERANCE, "of probability", "the golden predictions")
    )
    checks.append(_check_leaks(leaked))
    numbers = {
        f"{check.name}.{key}": float(value)
        for check in checks
        for key, value in check.numbers.items()
        if isinstance(value, (int, float))
    }
    return Verdict(all(check.passed for check in checks), tuple(checks), numbers)


def _check_sound(labels: Labels, challenger: Floats, champion: Floats | None, class_names: Sequence[str]) -> Check:
    try:
        check_predictions(labels, challenger, len(class_names))
        if champion is not None:
            check_predictions(labels, champion, len(class_names))
    except ValueError as error:
        return Check("predictions", False, f"The predictions cannot be judged: {error}")
    return Check("predictions", True, "Every prediction is a probability for each class.")


def _check_unscored(problem: str) -> Check:
    message = f"The champion could not be scored, so that nothing is compared with it: {problem}"
    return Check("champion", False, message)


def _check_same_classes(ours: Sequence[str], theirs: Sequence[str], shared: int, total: int) -> Check:
    """Always failed: another set of classes is another task, and whether that is meant is a person's to say."""
    new, gone = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    changes = [f"new: {some(new)}"] * bool(new) + [f"gone: {some(gone)}"] * bool(gone)
    message = (
        f"The champion knows other classes ({'; '.join(changes)}). They are compared on the {shared} of {total} test images of "
        'shared classes alone. If the change is meant: `frostline promote --force --reason "..."`.'
    )
    return Check(
        "same_classes", False, message, {"num_new": len(new), "num_gone": len(gone), "num_shared_images": shared}
    )


def _check_seen(
    labels: Labels, challenger: Floats, champion: Floats, fresh: NDArray[np.bool_], rules: Promote
) -> Check:
    """What the champion was trained on it answers too well: said apart, and enough must be left."""
    number, seen = int(fresh.sum()), int((~fresh).sum())
    ours, theirs = ((given[~fresh].argmax(axis=1) == labels[~fresh]).mean() for given in (challenger, champion))
    message = (
        f"The champion was trained on {seen} of {len(labels)} test images; on those the challenger has {100 * ours:.1f} % right, the "
        f"champion {100 * theirs:.1f} %. They are compared on the other {number}"
    )
    passed = number >= rules.min_test_images
    if not passed:
        message += f": too few to decide. promote.min_test_images asks for {rules.min_test_images}"
    numbers = {
        "num_seen": seen,
        "num_fresh": number,
        "accuracy_on_seen": float(ours),
        "champion_on_seen": float(theirs),
    }
    return Check("seen", passed, message + ".", numbers)


def _restrict(probabilities: Floats, columns: Sequence[int]) -> Floats:
    """The probabilities given that the class is among `columns`."""
    kept = np.maximum(probabilities[:, columns].astype(np.float64), 1e-12)
    restricted: Floats = kept / kept.sum(axis=1, keepdims=True)
    return restricted


def _check_test_size(labels: Labels, challenger: Floats, rules: Promote) -> Check:
    num_images, correct = len(labels), int((challenger.argmax(axis=1) == labels).sum())
    share = comparison.wilson_interval(correct, num_images)
    half = (share.high - share.low) / 2
    passed = num_images >= rules.min_test_images
    message = f"{num_images} test images give the accuracy to ±{100 * half:.1f} points"
    if not passed:
        message += f": too few to decide. promote.min_test_images asks for {rules.min_test_images}"
    return Check("test_size", passed, message + ".", {"num_images": num_images, "half_width": half})


def _check_floor(labels: Labels, challenger: Floats, rules: Promote) -> Check:
    correct = int((challenger.argmax(axis=1) == labels).sum())
    low = comparison.wilson_interval(correct, len(labels), 1 - 2 * rules.significance).low
    majority = float(np.bincount(labels).max() / len(labels))
    passed = low > max(majority, rules.accuracy_floor)
    message = (
        f"Accuracy {correct / len(labels):.3f}, lower bound {low:.3f}, must be above the largest class's share "
        f"{majority:.3f} and above promote.accuracy_floor {rules.accuracy_floor:g}."
    )
    numbers = {
        "accuracy": correct / len(labels),
        "low": low,
        "majority": majority,
        "accuracy_floor": rules.accuracy_floor,
    }
    return Check("floor", passed, message, numbers)


def _check_comparison(
    labels: Labels, challenger: Floats, champion: Floats, rules: Promote, resamples: int, seed: int
) -> Check:
    num_images = len(labels)
    wins, losses = comparison.count_discordant(labels, challenger, champion)
    p_value = comparison.mcnemar(wins, losses)
    # The lower end of a 1 - 2a interval is a one-sided bound at level a.
    confidence = 1 - 2 * rules.significance
    drawn = comparison.paired_difference(
        labels, challenger, champion, resamples=resamples, confidence=confidence, seed=seed
    )
    score = comparison.paired_score_interval(wins, losses, num_images, confidence)
    low = min(drawn.low, score.low)
    numbers = {
        "difference": drawn.value,
        "low": drawn.low,
        "high": drawn.high,
        "score_low": score.low,
        "score_high": score.high,
        "p_value": p_value,
        "wins": wins,
        "losses": losses,
        "discordance": (wins + losses) / num_images,
        "num_images": num_images,
        "level": rules.significance,
    }
    found = (
        f"{100 * drawn.value:+.2f} points [{100 * drawn.low:+.2f}, {100 * drawn.high:+.2f}], "
        f"{wins} wins and {losses} losses on {num_images} images, p = {p_value:.3g}"
    )
    if rules.policy == "better":
        passed = p_value < rules.significance
        asked, gain = f"better at p < {rules.significance:.2g}", drawn.value
    else:
        passed = low > -rules.margin
        asked, gain = (
            f"not worse by {100 * rules.margin:g} points at p < {rules.significance:.2g}, lower bound {100 * low:+.2f}",
            drawn.value + rules.margin,
        )
    message = f"{found}; asked for: {asked}."
    if not passed:
        needed = comparison.needed_images(
            gain, max((wins + losses) / num_images, 1 / num_images), significance=rules.significance
        )
        if needed is not None and needed > num_images:
            numbers["needed_images"] = needed
            message += f" This test set cannot tell; about {needed} images would, if the difference is as seen."
        elif needed is None:
            message += " More test images would not help: the challenger is behind."
    return Check("comparison", passed, message, numbers)


def _check_classes(
    labels: Labels, challenger: Floats, champion: Floats, class_names: Sequence[str], rules: Promote
) -> Check:
    drops = {}
    for index, name in enumerate(class_names):
        members = labels == index
        if members.sum() >= rules.min_class_images:
            ours = float((challenger[members].argmax(axis=1) == index).mean())
            theirs = float((champion[members].argmax(axis=1) == index).mean())
            drops[name] = theirs - ours
    fallen = {name: drop for name, drop in drops.items() if drop > rules.max_class_drop}
    numbers = {f"drop.{name}": drop for name, drop in drops.items()}
    if fallen:
        worst = ", ".join(
            f"{name} -{100 * drop:.1f}" for name, drop in sorted(fallen.items(), key=lambda item: -item[1])
        )
        message = f"Recall fell by more than {100 * rules.max_class_drop:g} points: {worst}."
    elif drops:
        name, drop = max(drops.items(), key=lambda item: item[1])
        message = f"No class lost more than {100 * rules.max_class_drop:g} points of recall; the most, {name}: {-100 * drop:+.1f}."
    else:
        message = f"No class has promote.min_class_images = {rules.min_class_images} test images; nothing to compare."
    return Check("classes", not fallen, message, numbers)


def _check_calibration(labels: Labels, challenger: Floats, rules: Promote) -> Check:
    ece = measure(labels, challenger, ["ece"])["ece"]
    floor = ece_floor(challenger)
    # What chance alone gives so few images is not held against the model.
    passed = ece <= rules.max_ece + floor
    message = f"ECE {ece:.3f}, allowed {rules.max_ece:g} + {floor:.3f} (chance on {len(labels)} images)."
    return Check("calibration", passed, message, {"ece": ece, "floor": floor, "max_ece": rules.max_ece})


def _check_limit(name: str, value: float | None, limit: float, unit: str, rule: str) -> Check:
    if value is None or not np.isfinite(value):
        return Check(name, False, f"Not measured ({value}), so {rule} cannot be checked.")
    return Check(
        name, value <= limit, f"{value:.4g} {unit}, allowed {limit:g} ({rule}).", {"value": value, "limit": limit}
    )


def _check_leaks(leaked: Sequence[str] | None) -> Check:
    if leaked is None:
        return Check("leaks", False, "Not checked whether test images were trained on.")
    message = "No test image, nor a near duplicate, is in the challenger's training data."
    if leaked:
        some = ", ".join(leaked[:5]) + (", ..." if len(leaked) > 5 else "")
        message = f"{len(leaked)} test images, or near duplicates, are in the challenger's training data: {some}"
    return Check("leaks", not leaked, message, {"num_leaked": len(leaked)})
