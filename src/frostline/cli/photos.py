"""`frostline use photos`: params.yaml for a folder of one's own; not a command, `use` and `train` call it."""

import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frostline.cli.presets import DEFAULT, apply_settings, refuse_edits, write_params
from frostline.cli.screen import SAMPLE, Screening, label_of, log_result, run_screening, save_first, show
from frostline.errors import Refused, some
from frostline.evidence.predictions import BASELINES
from frostline.images.sources import count_layout
from frostline.params import Params, list_problems, parse_document, parse_params
from frostline.process import UNFINISHED

if TYPE_CHECKING:
    from frostline.images.folders import Layout
    from frostline.planning.estimate import Plan
    from frostline.search.screening import Screened

NAME = "photos"
DEEPEST = 8  # blocks that are unfrozen at most
WIDEST = 12  # classes that are shown one by one
MARGIN = 0.9  # of the minutes that are left after the screening: the plan does not know all that other programs do
SAMPLE_A_MINUTE, FEW = 100, 300  # images that bases are judged on, for each minute that the line may take, and at least


def set_up(root: Path, data: str, candidates: tuple[str, ...], minutes: float, *, force: bool) -> None:
    """Looks at the folder, screens bases, and writes params.yaml with a reason behind each value that it chose."""
    from frostline.planning.defaults import choose_settings
    from frostline.planning.pace import find_images

    default = (root / DEFAULT).read_text(encoding="utf-8")
    params = _checked(apply_settings(default, {"fetch.source": data}), root, data)
    if not force:  # before anything is computed
        refuse_edits(root)
    layout = find_images(params, UNFINISHED, 0)
    for line in describe_folder(layout):
        click.echo(line)
    sys.stdout.flush()
    screening = run_screening(params, candidates, (), min(SAMPLE, max(FEW, round(SAMPLE_A_MINUTE * minutes))))
    chosen = choose_settings(len(layout.entries), count_layout(layout)[2])
    wanted = chosen["augment.views"].value
    suits = apply_settings(default, {"fetch.source": data, **{name: setting.value for name, setting in chosen.items()}})
    best, search, plan = choose_base(screening, suits, wanted, MARGIN * (minutes - screening.seconds / 60))
    settings: dict[str, Any] = {"fetch.source": data}
    settings |= {f"base.{name}": value for name, value in best.base.model_dump(mode="json").items()}
    reasons = {
        "base.name": f"out of fold {best.accuracy.value:.3f} on {len(best.losses)} images, by `frostline screen`"
    }
    slower = (
        "" if best is screening.best else f"{label_of(screening.best.base)} would take more than {minutes:g} minutes"
    )
    if slower:
        reasons["base.name"] += f"; {slower}"
    for name, setting in chosen.items():
        settings[name], reasons[name] = setting.value, setting.reason
    settings |= search
    if "tune.num_trials" in search:
        longer = f"to unfreeze one block would take more than {minutes:g} minutes"
        reasons |= {"tune.space.unfrozen_blocks": longer, "tune.num_trials": "the two linear heads alone"}
    else:
        reasons["tune.space.unfrozen_blocks"] = f"the deepest within about {minutes:g} minutes for the whole line"
    if settings["augment.views"] < wanted:
        reasons["augment.views"] = f"{wanted} would take more than {minutes:g} minutes; epochs repeat them"
    text = apply_settings(default, settings, reasons)
    _checked(text, root, data)
    show(screening)
    if slower:
        click.echo(f"Taken is {label_of(best.base)}: {slower}.")
    log_result(params, screening, text)
    model, answer = save_first(screening.params, best)
    accuracy = answer.accuracy
    write_params(root, text, NAME, force=True)  # last: whoever finds it takes all before it for done
    click.echo(
        f"\nA first answer, a linear head on {label_of(best.base)}: accuracy {accuracy.value:.3f} [{accuracy.low:.3f}, "
        f"{accuracy.high:.3f}] out of fold.\nIt answers already: frostline predict --model {model} FILES\n"
    )
    for step in plan.steps:
        click.echo(f"plan: {step.stage}: {step.what}, about {step.seconds:.0f} s")
    click.echo(f"plan: about {plan.seconds / 60:.0f} minutes in all; --minutes says how many may be")


def describe_folder(layout: "Layout") -> list[str]:
    """What the folder holds, a line each."""
    counts = Counter(entry.class_name for entry in layout.entries)
    splits = Counter(entry.split for entry in layout.entries if entry.split)
    shown = [f"{name} {number}" for name, number in sorted(counts.items(), key=lambda item: item[1])]
    lines = [f"{len(layout.entries)} images in {len(counts)} classes: {some(shown, WIDEST)}"]
    if splits:
        lines.append("own splits: " + ", ".join(f"{name} {number}" for name, number in splits.items()))
    return [*lines, *(f"note: {note}" for note in layout.notes)]


def choose_base(screening: Screening, text: str, views: int, minutes: float) -> "tuple[Screened, dict[str, Any], Plan]":
    """The first of the ranking whose line takes at most so many minutes, or the fastest; how it is searched, and its plan."""
    found = []
    for each in (*screening.ranked, *screening.left):
        search, plan = choose_search(screening, each, text, views, minutes)
        found.append((each, search, plan))
        if plan.seconds <= 60 * minutes:
            return found[-1]
    return min(found, key=lambda each: each[2].seconds)


def choose_search(
    screening: Screening, best: "Screened", text: str, views: int, minutes: float
) -> "tuple[dict[str, Any], Plan]":
    """As many views and then as deep as the plan takes at most so many minutes, or the linear heads alone; and that plan."""
    deepest = min(DEEPEST, len(best.network.cuts) - 1)
    searches: list[dict[str, Any]] = [
        {"augment.views": number, "tune.space.unfrozen_blocks": [0, depth]}
        for number, depth in product(dict.fromkeys((views, views // 2 or 1, 2, 1)), range(deepest, 0, -1))
    ]
    heads = {"augment.views": 1, "tune.space.unfrozen_blocks": [0, 0], "tune.num_trials": len(BASELINES)}
    for search in [*searches, heads]:
        plan = screening.plan(best, parse_params(parse_document(apply_settings(text, search)), "params.yaml"))
        if plan.seconds <= 60 * minutes:
            break
    return search, plan


def _checked(text: str, root: Path, data: str) -> Params:
    from frostline.planning.checks import find_problems

    if problems := find_problems(parse_document(text), root):
        raise Refused(list_problems(f"params.yaml for {data}", problems))
    return parse_params(parse_document(text), "params.yaml")
