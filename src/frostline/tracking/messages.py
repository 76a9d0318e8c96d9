"""What the stages print. No stage depends on these words."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every stage prints; few have anything to do with scores
    from frostline.evidence.evaluation import Evaluation
    from frostline.evidence.refits import RefitRecord
    from frostline.evidence.trials import TrialRecord
    from frostline.images.copies import Marked


def say(stage: str, lines: Iterable[str] | str) -> None:
    """Prints lines of a stage, each with its name."""
    for line in [lines] if isinstance(lines, str) else lines:
        print(f"{stage}: {line}", flush=True)


def describe_preparation(
    counts: Mapping[str, Mapping[str, int]], left_out: Mapping[str, int], notes: Iterable[str], rejected: Path
) -> list[str]:
    """Images by split and class, what was left out and where it is named, and what else is to be told."""
    lines = []
    for split, classes in counts.items():
        listed = ", ".join(f"{name} {number}" for name, number in classes.items())
        lines.append(f"{split}: {sum(classes.values())} images ({listed})")
    lines += [f"left out as {kind}: {number}; see {rejected}" for kind, number in left_out.items()]
    return [*lines, *(f"note: {note}" for note in notes)]


def describe_view(view: int, num_views: int, drawn: int, num_images: int) -> str:
    """A view was written; so many of its rows were drawn, the others were there."""
    return f"view {view} of {num_views - 1}{_earlier(drawn, num_images)}"


def _earlier(made: int, total: int) -> str:
    return f": {made} of {total} rows are new" if made < total else ""


def describe_views(num_views: int, num_images: int) -> str:
    """All views were drawn."""
    return f"{num_views} views of {num_images} images, the plain one among them"


def describe_precision(precision: str, reason: str) -> str:
    """What the frozen prefix computes in, and why."""
    return f"computes in {precision}: {reason}"


def describe_source(name: str, done: int, total: int, computed: int, num_images: int, seconds: float) -> str:
    """The features of one view, or of validation, were written; so many of its rows were computed, the others were there."""
    return f"{name} ({done}/{total}){_earlier(computed, num_images)}, {seconds:.1f} s"


def describe_copies(marked: "Marked", listed: Path) -> list[str]:
    """Near duplicates that hashes had missed, and what becomes of them."""
    if not marked.pairs:
        return []
    found = f"{marked.pairs} pair{'s' * (marked.pairs > 1)} of images that look like near duplicates which hashes miss"
    if marked.one_scene:
        return [f"{found}: so many that they seem to show one set-up, and none is taken for a copy"]
    return [
        f"{found} (cropped, mirrored, recoloured); see {listed}",
        f"not trained on: {marked.of_test} of test images; only in the final training: {marked.of_val} of val images; "
        "the others share a fold",
    ]


def describe_starts(origins: Sequence[str]) -> list[str]:
    """What a study begins with beside the linear heads; "study/number" of each trial."""
    if not origins:
        return []
    study = origins[0].split("/")[0]
    trials = f"trial{'s' * (len(origins) > 1)} {', '.join(origin.split('/')[1] for origin in origins)}"
    return [
        f"begins with what {trials} of study {study} tried, on other images or params; none of those scores counts",
        "where images were only added, a study that began so had with its first trained trial on average at most 3 % more "
        "log loss than one from nothing with ten (docs/changes.md): a small tune.num_trials may do, a larger one later goes on",
    ]


def describe_candidates(record: "RefitRecord") -> list[str]:
    """Out-of-fold scores of all that was judged, and what was chosen of it."""
    lines = [
        f"{each.name}: out of fold accuracy {each.accuracy:.4f} [{each.low:.4f}, {each.high:.4f}], log loss {each.log_loss:.4f}, "
        f"{100 * each.gain:+.2f} points over the bare head [{100 * each.gain_low:+.2f}, {100 * each.gain_high:+.2f}]"
        for each in record.candidates
    ]
    lines += [f"trial {number} left out: its loss is not finite in a fold" for number in record.diverged]
    what = f"{record.share:.0%} tails of trial {record.trial}, {1 - record.share:.0%} linear head"
    mirror = ", image and mirror image" if record.mirrored else ""
    return [*lines, f"chosen: {what}{mirror}: accuracy {record.accuracy:.4f}, log loss {record.log_loss:.4f}"]


def describe_test(evaluation: "Evaluation") -> str:
    """What the test split said of the final model."""
    accuracy, gain = evaluation.score("accuracy"), evaluation.gain
    return (
        f"test accuracy {accuracy.value:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}] on {evaluation.num_images} images, "
        f"{100 * gain.value:+.2f} points over head only (p = {gain.p_value:.3g})"
    )


def describe_registration(name: str, number: int, accuracy: str) -> str:
    """A version was registered."""
    return f"{name} version {number}, test accuracy {accuracy}"


def explain_experiment(experiment: str) -> str:
    """Why a model made by a DVC experiment is not registered: an experiment must not move an alias."""
    return (
        f"it was made by the DVC experiment {experiment}; `dvc exp apply {experiment}`, then "
        "`dvc repro --force --single-item register`"
    )


def describe_trial(trial: "TrialRecord", num_trials: int, head: float | None = None, num_classes: int = 0) -> str:
    """One line for a log: number, depth, dropout, score, time.

    head: the score of the better linear head, where every tail begins. A trial that fell more than half of the way from it to
    guessing has collapsed, and the line says why.
    """
    score = "failed" if trial.score is None else f"val accuracy {trial.score:.4f}"
    note = {"COMPLETE": "", "PRUNED": f", pruned after epoch {trial.epochs}", "FAIL": f": {trial.reason}"}
    return (
        f"trial {trial.number + 1}/{num_trials}: depth {trial.depth}, dropout {trial.hparams.dropout:.2f}, "
        f"{score}, {trial.seconds:.1f} s{note[trial.state]}{_tell_collapse(trial, head, num_classes)}"
    )


def _tell_collapse(trial: "TrialRecord", head: float | None, num_classes: int) -> str:
    from frostline.evidence.trials import describe_collapse, has_collapsed

    if not has_collapsed(trial, head, num_classes):
        return ""
    return f"; collapsed: {describe_collapse(trial)}, whose head began at {head:.4f}"
