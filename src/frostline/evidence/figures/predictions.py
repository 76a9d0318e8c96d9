"""Images of a model's predictions: confusions, ranking, calibration, and what a threshold would buy.

`labels` is int (num_images,), `probabilities` float (num_images, num_classes).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from frostline.evidence.figures.canvas import BLACK, BLUE, COLOURS, GREY, MARKERS, ORANGE, VERMILION, sheet, shorten

Array = NDArray[Any]
PERCENT = PercentFormatter(1.0, decimals=None)
MOST_NUMBERS = 20  # classes up to which each field of the confusion matrix carries its numbers
MOST_CURVES = 7  # ROC curves told apart by colour and marker


def confusion_matrix(counts: Array, class_names: Sequence[str], path: Path) -> None:
    """Counts and rates of each (truth, prediction); a row is a true class and its rates sum to 100 %."""
    counts = np.asarray(counts)
    num_classes = len(class_names)
    rates = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(2.2 + 0.62 * num_classes, 5.5, 8.2))
    right = int(np.trace(counts))
    with sheet(path, f"Confusion matrix: {right} of {counts.sum()} test images right", size) as (figure, axes):
        drawn = axes.imshow(rates, cmap="Blues", vmin=0, vmax=1)
        names = [shorten(name, 18) for name in class_names]
        if num_classes <= 60:
            turned = num_classes > 4
            angle: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
            if num_classes > MOST_NUMBERS:
                angle = {"rotation": 90, "fontsize": 8 if num_classes <= 40 else 6}
                axes.tick_params(axis="y", labelsize=angle["fontsize"])
            axes.set_xticks(range(num_classes), names, **angle)
            axes.set_yticks(range(num_classes), names)
        if num_classes <= MOST_NUMBERS:
            small = 12 if num_classes <= 4 else 9 if num_classes <= 12 else 7
            for row, column in np.ndindex(counts.shape):
                if counts[row, column]:
                    text = f"{counts[row, column]}\n{rates[row, column]:.1%}"
                    colour = "white" if rates[row, column] > 0.5 else BLACK
                    axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=small)
        axes.set(xlabel="Prediction", ylabel="Truth")
        axes.grid(visible=False)
        figure.colorbar(drawn, ax=axes, label="Share of the true class", format=PERCENT)


def rank_curves(truth: Array, scores: Array) -> tuple[Array, Array, Array]:
    """False and true positive rate and precision, each (k + 1,), at the k distinct scores from the highest down.

    truth: bool (num_images,), of both kinds; scores: float (num_images,). They begin at rates of 0 and a precision of 1.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each score's images
    true = np.append(0, np.cumsum(truth[order])[last])
    number = np.append(0, last + 1)
    false = number - true
    return false / false[-1], true / true[-1], np.append(1.0, true[1:] / number[1:])


def roc_pr(labels: Array, probabilities: Array, class_names: Sequence[str], path: Path) -> None:
    """ROC and precision-recall curves, one class against the rest.

    Two classes give one curve, for the second class. With more than seven the lowest areas are drawn, the rest in grey.
    """
    num_classes = len(class_names)
    chosen = [1] if num_classes == 2 else range(num_classes)
    drawable = [c for c in chosen if 0 < (labels == c).sum() < len(labels)]
    curves = {c: rank_curves(labels == c, probabilities[:, c]) for c in drawable}
    areas = {c: float(np.trapezoid(rates[1], rates[0])) for c, rates in curves.items()}
    ranked = sorted(drawable, key=lambda c: areas[c])
    with sheet(path, "Ranking: ROC and precision-recall, one class against the rest", 5.4, ncols=2) as (
        figure,
        (roc, pr),
    ):
        for index, label in reversed(list(enumerate(ranked))):
            false_rate, true_rate, precision = curves[label]
            told = index < MOST_CURVES
            style: dict[str, Any] = (
                {"color": COLOURS[index % 7], "lw": 1.8} if told else {"color": "#C8C8C8", "lw": 0.8}
            )
            marks: dict[str, Any] = {"marker": MARKERS[index % 7], "markevery": 0.2, "markersize": 5} if told else {}
            average = float(np.diff(true_rate) @ precision[1:])
            text = f"{shorten(class_names[label], 20)}: AUC {areas[label]:.3f}, AP {average:.3f}"
            roc.plot(false_rate, true_rate, label=text if told else None, **style, **marks)
            pr.step(true_rate[::-1], precision[::-1], where="post", **style, **marks)
        roc.plot([0, 1], [0, 1], ls=":", color=GREY)
        roc.set(
            xlabel="False positives (share of the other classes)",
            ylabel="True positives (share of the class)",
            title="ROC",
            ylim=(-0.03, 1.03),
        )
        pr.set(xlabel="Recall", ylabel="Precision", title="Precision-recall", ylim=(-0.03, 1.03))
        for axes in (roc, pr):
            axes.set_xlim(-0.03, 1.03)
            axes.set_aspect("equal")
        handles, texts = roc.get_legend_handles_labels()
        figure.legend(handles[::-1], texts[::-1], loc="outside lower center", ncol=2)


def reliability(
    before: Sequence[Mapping[str, float]],
    after: Sequence[Mapping[str, float]],
    path: Path,
    *,
    ece: tuple[float, float],
    temperature: float,
    floor: float,
) -> None:
    """Accuracy against confidence before and after temperature scaling, with the images in each bin below.

    before, after: bins of `metrics.calibration.reliability`; ece: (before, after); floor: what chance alone gives.
    """
    title = f"Calibration before and after scaling by temperature {temperature:.2f}"
    start = min((b["low"] for b in (*before, *after)), default=0.0)
    with sheet(path, title, 5.8, nrows=2, ncols=2, sharex=True, sharey="row", height_ratios=[3, 1]) as (_, axes):
        for column, (bins, name, colour, marker) in enumerate(
            ((before, "Before", ORANGE, "s"), (after, "After", BLUE, "o"))
        ):
            curve, counts = axes[0, column], axes[1, column]
            confidence = np.array([b["confidence"] for b in bins])
            accuracy = np.array([b["accuracy"] for b in bins])
            number = np.array([b["count"] for b in bins])
            # Two standard errors of a share; a bin of few images proves little.
            error = 2 * np.sqrt(np.maximum(confidence * (1 - confidence), 1e-4) / number)
            curve.plot([0, 1], [0, 1], ls=":", color=GREY, label="perfect")
            reach = [accuracy - (accuracy - error).clip(0), (accuracy + error).clip(max=1) - accuracy]
            style = {"fmt": marker, "ls": "-", "color": colour, "capsize": 3, "label": "bin, ± 2 s.e."}
            curve.errorbar(confidence, accuracy, yerr=reach, **style)
            curve.set_title(f"{name}: ECE {ece[column]:.3f} (chance alone {floor:.3f})")
            curve.set(xlim=(start - 0.02, 1.02), ylim=(-0.03, 1.05))
            curve.legend(loc="lower right")
            low = np.array([b["low"] for b in bins])
            width = np.array([b["high"] for b in bins]) - low
            counts.bar(low, number, width, align="edge", color=colour, edgecolor="white")
            counts.set_yscale("log")
            counts.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            counts.set_xlabel("Confidence (probability of the answer)")
        axes[0, 0].set_ylabel("Accuracy")
        axes[1, 0].set_ylabel("Images")


def coverage(labels: Array, probabilities: Array, path: Path) -> None:
    """Accuracy on, and share of, the images whose confidence reaches a threshold."""
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence)
    right = (probabilities.argmax(axis=1) == labels)[order]
    taken = np.arange(1, len(labels) + 1)
    accuracy = np.cumsum(right) / taken
    thresholds = confidence[order]
    last = np.flatnonzero(np.append(np.diff(thresholds) != 0, True))  # equal confidences are answered together
    with sheet(path, "What a confidence threshold buys", 4.8) as (figure, axes):
        axes.plot(
            thresholds[last],
            accuracy[last],
            color=BLUE,
            lw=2.2,
            drawstyle="steps-post",
            label="accuracy of the answers",
        )
        axes.plot(
            thresholds[last],
            taken[last] / len(labels),
            color=ORANGE,
            lw=2.2,
            ls="--",
            drawstyle="steps-post",
            label="coverage: share of images answered",
        )
        axes.axhline(accuracy[-1], color=GREY, ls=":", label=f"all images answered: {accuracy[-1]:.1%}")
        for goal, marker in ((0.99, "D"), (0.999, "^")):
            reached = [at for at in last if accuracy[at] >= goal and taken[at] >= 20]
            if accuracy[-1] < goal and reached:
                at = max(reached)
                answered = taken[at] / len(labels)
                text = f"{goal:.1%} right on {answered:.0%} of the images, from {thresholds[at]:.3f} on"
                x = [thresholds[at]] * 2
                axes.plot(
                    x, [accuracy[at], answered], marker, color=VERMILION, ls=":", lw=1.2, markersize=8, label=text
                )
        axes.set(
            xlabel="Confidence threshold (predictions below it are withheld)", ylabel="Share of images", ylim=(0, 1.03)
        )
        axes.yaxis.set_major_formatter(PERCENT)
        figure.legend(loc="outside lower center", ncol=2)
