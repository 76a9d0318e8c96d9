"""Images of a search: what each trial scored, what it cost, and which choices mattered."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator, PercentFormatter

from frostline.evidence.figures.canvas import BLACK, BLUE, COLOURS, GREY, MARKERS, ORANGE, VERMILION, sheet, shorten
from frostline.evidence.trials import SearchRecord, TrialRecord, describe_edge
from frostline.hparams import HPARAMS

Record = Mapping[str, Any]
PERCENT = PercentFormatter(1.0, decimals=None)
LINE = 125  # letters of a line below the title
UNUSED = -0.14  # height in the parallel coordinates of a choice that a trial did not use


def draw_study(search: SearchRecord, report: Record, folder: Path) -> list[Path]:
    """Draws all that a study shows into `folder` and returns the files, in the order a person would look.

    report: the record of `study.json`, whose `cuts`, `deeper` and `importances` are used.
    """
    files = [folder / f"{name}.png" for name in ("frost_line", "search_history", "importance", "parallel_coordinates")]
    frost_line(search, files[0], cuts=report.get("cuts", ()), note=describe_edge(search, report))
    search_history(search, files[1])
    importance(report.get("importances") or {}, files[2])
    parallel_coordinates(search, files[3])
    curves = folder / "learning_curves.png"
    shown = {f"best, trial {search.best}": search.trial(search.best).curves}
    baseline = search.trial(search.baseline)
    if baseline.curves and search.best != search.baseline:
        shown[f"head only, trial {search.baseline}"] = baseline.curves
    learning_curves(shown, curves)
    return [*files, curves]


def frost_line(search: SearchRecord, path: Path, *, cuts: Sequence[Record] = (), note: str = "") -> None:
    """Validation score by depth: every trial, the best and the middle of each depth; below, the seconds a trial took.

    cuts: {depth, name} of each candidate cut; its name stands under the depth. note: a sentence below the title.
    """
    finished, pruned = _by_state(search)
    names = {cut["depth"]: cut["name"] for cut in cuts}
    tried = {trial.depth for trial in finished + pruned}
    depths = range(min(tried, default=0), max(tried, default=0) + 1)
    title = "The frost line: how deep to unfreeze"
    with sheet(path, title, 6.0, nrows=2, sharex=True, height_ratios=[3, 1]) as (_, (scores, cost)):
        scores.set_title(textwrap.fill(note, LINE), loc="left", fontsize=10)
        _draw_scores(scores, finished, pruned, depths)
        best = next((trial for trial in finished if trial.number == search.best), None)
        if best is not None:
            at = (depths.index(best.depth), _score(best))
            text = f"trial {best.number}: {_score(best):.1%}"
            scores.scatter(*at, s=230, facecolors="none", edgecolors=VERMILION, linewidths=2.2, zorder=5)
            place = {"xytext": (0, 13), "textcoords": "offset points", "ha": "center"}
            scores.annotate(text, at, color=VERMILION, fontweight="bold", **place)
        seconds = [[t.seconds for t in finished if t.depth == depth] for depth in depths]
        cost.bar(range(len(depths)), [float(np.median(s)) if s else 0.0 for s in seconds], width=0.5, color=GREY)
        for column, taken in enumerate(seconds):
            missing = "none finished" if depths[column] in tried else "not tried"
            text = f"{np.median(taken):.3g} s" if taken else missing
            cost.text(column, np.median(taken) if taken else 0.0, text, ha="center", va="bottom", fontsize=10)
        cost.set_ylabel("Seconds\nper trial")
        cost.margins(y=0.3)
        named = [_name_depth(depth, names, len(depths)) for depth in depths]
        cost.set_xticks(range(len(depths)), named, fontsize=10 if len(depths) < 6 else 9)
        cost.set_xlabel("Unfrozen blocks, and the cut below them")


def _draw_scores(
    axes: Any, finished: Sequence[TrialRecord], pruned: Sequence[TrialRecord], depths: Sequence[int]
) -> None:
    rng = np.random.default_rng(0)  # sideways jitter, so that equal scores do not hide each other
    bottom = _focus(axes, _scores(finished))
    for kind, label, colour in ((pruned, "pruned trial (score so far)", GREY), (finished, "finished trial", BLUE)):
        x = [depths.index(trial.depth) + rng.uniform(-0.12, 0.12) for trial in kind]
        face = colour if kind is finished else "none"
        _scatter(axes, x, _scores(kind), bottom, face, colour, label)
    by_depth = [(at, _scores([t for t in finished if t.depth == depth])) for at, depth in enumerate(depths)]
    groups = [(at, group) for at, group in by_depth if group]
    if groups:
        x = [at for at, _ in groups]
        low, middle, high = np.array([np.quantile(group, (0.25, 0.5, 0.75)) for _, group in groups]).T
        axes.bar(x, high - low, 0.4, low, color=BLUE, alpha=0.15, label="middle half")
        axes.errorbar(x, middle, xerr=0.2, fmt="none", color=BLUE, label="median")
        bests = [max(group) for _, group in groups]
        axes.plot(x, bests, color=ORANGE, lw=2.5, marker="s", label="best of the depth")
    axes.set_ylabel("Validation accuracy")
    axes.yaxis.set_major_formatter(PERCENT)
    _legend(axes)


def search_history(search: SearchRecord, path: Path) -> None:
    """The score of each trial in the order it ran, and the best so far."""
    finished, pruned = _by_state(search)
    with sheet(path, "Search history", 4.6) as (_, axes):
        bottom = _focus(axes, _scores(finished))
        for kind, label, colour in ((pruned, "pruned trial (score so far)", GREY), (finished, "finished trial", BLUE)):
            face = colour if kind is finished else "none"
            _scatter(axes, [t.number for t in kind], _scores(kind), bottom, face, colour, label)
        numbers = [t.number for t in finished]
        best = np.maximum.accumulate(_scores(finished)).tolist() if finished else []
        if finished:
            numbers.append(search.trials[-1].number)
            best.append(best[-1])
        axes.step(numbers, best, where="post", color=ORANGE, lw=2, label="best so far")
        baseline = next((t for t in finished if t.number == search.baseline), None)
        if baseline is not None:
            axes.axhline(_score(baseline), color=BLACK, ls=":", label=f"head only (trial {search.baseline})")
        failed = [t.number for t in search.trials if t.state == "FAIL"]
        if failed:
            bottom = axes.get_xaxis_transform()
            axes.plot(
                failed,
                [0.02] * len(failed),
                "x",
                color=VERMILION,
                transform=bottom,
                label="failed trial",
                clip_on=False,
            )
        axes.set(xlabel="Trial", ylabel="Validation accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PERCENT)
        _legend(axes)


def importance(importances: Mapping[str, float], path: Path) -> None:
    """How much of the scores' spread each choice explains (shares that sum to 1); says so where none can be given."""
    ranked = sorted(importances.items(), key=lambda item: item[1])
    with sheet(path, "Which choices mattered", max(2.4, 1.2 + 0.45 * len(ranked))) as (_, axes):
        if not ranked:
            axes.axis("off")
            message = "No importance can be given: too few finished trials,\nor only one value of everything was tried."
            axes.text(0.5, 0.5, message, ha="center", va="center")
            return
        names = [_label(name).replace("\n", " ") for name, _ in ranked]
        bars = axes.barh(names, [value for _, value in ranked], color=BLUE, height=0.6)
        axes.bar_label(bars, [f"{value:.0%}" for _, value in ranked], padding=4)
        axes.set_xlabel("Share of the spread in validation accuracy that the choice explains")
        axes.xaxis.set_major_formatter(PERCENT)
        axes.margins(x=0.1)
        axes.grid(axis="y", visible=False)


def parallel_coordinates(search: SearchRecord, path: Path) -> None:
    """Each finished trial as a line through its choices, coloured by its score; the best is drawn thick.

    Choices that never vary are left out. What a trial did not use lies below the axis.
    """
    finished, _ = _by_state(search)
    finished = sorted(finished, key=_score)
    scores = np.array(_scores(finished))
    if len(scores):  # one trial that learned nothing must not take all the colours
        scores = scores.clip(min=np.quantile(scores, 0.1))
    names = [name for name in HPARAMS if _varies(finished, name)]
    with sheet(path, "Choices and what they scored", 5.2) as (figure, axes):
        if not finished:
            axes.axis("off")
            axes.text(0.5, 0.5, "No trial finished.", ha="center", va="center")
            return
        columns = [_Column(name, [getattr(t.hparams, name) for t in finished]) for name in names]
        columns.append(_Column("score", scores.tolist()))
        heights = np.array([column.heights for column in columns]).T  # (trials, columns)
        lines = [list(enumerate(row)) for row in heights]
        is_best = [t.number == search.best for t in finished]
        drawn = LineCollection(
            lines, cmap="cividis_r", alpha=0.85, linewidths=[4.0 if b else 1.4 for b in is_best], array=scores
        )
        axes.add_collection(drawn)
        for at, column in enumerate(columns):
            axes.axvline(at, color=BLACK, lw=1)
            for height, text in column.ticks:
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
                axes.text(at - 0.04, height, text, ha="right", va="center", fontsize=9, bbox=box, zorder=3)
        axes.set(xlim=(-0.45, len(columns) - 0.9), ylim=(UNUSED - 0.06, 1.06), yticks=[])
        labels = [_label(column.name) for column in columns[:-1]]
        axes.set_xticks(range(len(columns)), [*labels, "validation\naccuracy"])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        figure.colorbar(drawn, ax=axes, label="Validation accuracy", format=PERCENT, pad=0.01)
        note = "Thick: the best trial. The lowest tenth of the scores is drawn as one."
        axes.set_title(note, fontsize=10, loc="left")


def learning_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Loss and accuracy by epoch, training dashed and validation solid; one colour and marker per name in `curves`.

    Each value of `curves` holds lists under loss, val_loss, accuracy and val_accuracy.
    """
    with sheet(path, "Learning curves", 4.6, ncols=2) as (figure, axes):
        for panel, (key, label) in zip(axes, (("loss", "Loss (cross-entropy)"), ("accuracy", "Accuracy")), strict=True):
            for index, (name, series) in enumerate(curves.items()):
                style = {"color": COLOURS[index % 7], "marker": MARKERS[index % 7], "markersize": 5}
                epochs = range(1, len(series[key]) + 1)
                panel.plot(epochs, series[key], ls="--", alpha=0.6, label=f"{name}: training", **style)
                panel.plot(epochs, series[f"val_{key}"], label=f"{name}: validation", **style)
            panel.set(xlabel="Epoch", ylabel=label)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].yaxis.set_major_formatter(PERCENT)
        handles, labels = axes[0].get_legend_handles_labels()
        note = "training: on the epoch's own view of the images, with dropout"
        figure.legend(handles, labels, loc="outside lower center", ncol=2, title=note, title_fontsize=10)


class _Column:
    """One axis of the parallel coordinates: heights 0..1, UNUSED where a trial has no value, and the ticks beside it."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        used = [value for value in values if value is not None]
        if isinstance(used[0], str) or (len(set(used)) <= 6 and all(float(value).is_integer() for value in used)):
            kinds = sorted(set(used))
            place = {kind: (i / (len(kinds) - 1) if len(kinds) > 1 else 0.5) for i, kind in enumerate(kinds)}
            self.ticks = [(height, str(kind)) for kind, height in place.items()]
        else:
            logarithmic = name in HPARAMS and HPARAMS[name].is_logarithmic and min(used) > 0
            scale = np.log10 if logarithmic else float
            low, high = float(scale(min(used))), float(scale(max(used)))
            span = high - low or 1.0
            place = {value: float((scale(value) - low) / span) for value in used}
            marks = [low + share * span for share in (0, 1 / 3, 2 / 3, 1)]
            shown = [f"{10**m:.1e}" if logarithmic else f"{m:.1%}" if name == "score" else f"{m:.2g}" for m in marks]
            self.ticks = [((mark - low) / span, text) for mark, text in zip(marks, shown, strict=True)]
        self.heights = [UNUSED if value is None else place[value] for value in values]
        if len(used) < len(values):
            self.ticks.append((UNUSED, "not used"))


def _varies(trials: Sequence[TrialRecord], name: str) -> bool:
    return len({getattr(trial.hparams, name) for trial in trials}) > 1


def _by_state(search: SearchRecord) -> tuple[list[TrialRecord], list[TrialRecord]]:
    return search.in_state("COMPLETE"), search.in_state("PRUNED")


def _score(trial: TrialRecord) -> float:
    assert trial.score is not None, "only trials with a score are drawn"
    return trial.score


def _scores(trials: Sequence[TrialRecord]) -> list[float]:
    return [_score(trial) for trial in trials]


def _label(name: str) -> str:
    return HPARAMS[name].label if name in HPARAMS else name


def _name_depth(depth: int, names: Mapping[int, str], count: int) -> str:
    name = "head only" if depth == 0 else names.get(depth, "")
    return f"{depth}\n{shorten(name, max(8, 90 // count))}"


def _scatter(
    axes: Any, x: Sequence[float], scores: Sequence[float], bottom: float, face: str, edge: str, label: str
) -> None:
    """Dots; a score below `bottom`, or so near that its dot would be cut, is an arrow at the lower edge."""
    low, high = axes.get_ylim()
    edge_score = max(bottom, low + 0.02 * (high - low)) if bottom > -np.inf else bottom
    inside = [(at, score) for at, score in zip(x, scores, strict=True) if score >= edge_score]
    below = [at for at, score in zip(x, scores, strict=True) if score < edge_score]
    axes.scatter(
        [at for at, _ in inside], [s for _, s in inside], s=34, c=face, edgecolors=edge, alpha=0.8, label=label
    )
    if below:
        edge_of_axes = axes.get_xaxis_transform()
        style = {"marker": "v", "c": face, "edgecolors": edge, "transform": edge_of_axes, "label": "lower than shown"}
        axes.scatter(below, [0.02] * len(below), s=50, **style)


def _legend(axes: Any) -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one for each text
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncol": 6, "fontsize": 9}
    axes.legend(handles.values(), handles, **place, columnspacing=0.9, handletextpad=0.3)


def _focus(axes: Any, scores: Sequence[float]) -> float:
    """Puts the better scores in view, where one trial that learned nothing would flatten the rest; returns the lower end."""
    if not scores:
        return float("-inf")
    low, high = float(np.quantile(scores, 0.1)), max(scores)
    room = max(high - low, 0.01)
    bottom = max(min(scores), low - room) - 0.2 * room
    axes.set_ylim(bottom, min(high + 0.3 * room, 1.0 + 0.15 * room))
    return bottom
