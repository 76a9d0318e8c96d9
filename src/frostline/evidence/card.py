"""The model card: what a model is, what it was made from, how well it does, and where it fails. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frostline.errors import redact, some
from frostline.evidence.conformal import Promise, describe_promises
from frostline.evidence.evaluation import Evaluation, Gain
from frostline.evidence.refits import RefitRecord
from frostline.evidence.scores import METRICS, Score
from frostline.evidence.speed import Speed, describe_speed
from frostline.evidence.strangers import Strangers, describe_strangers
from frostline.evidence.suspicion import Suspicion, describe_suspicion
from frostline.evidence.trials import SearchRecord, describe_collapsed, describe_edge
from frostline.params import Params

Record = Mapping[str, Any]
WEAK = 5  # classes named as the weakest
SMALL = 30  # test images below which a class's own numbers are hardly worth more than an anecdote


@dataclass(frozen=True)
class Records:
    """What the stages wrote, as read from JSON.

    prepared: data/prepared/complete.json; base: data/base/card.json; search: reports/tune/trials.json; study: study.json beside it; refit:
    models/refit.json; evaluation: evaluation.json; suspicion: of suspicious.csv; promises: sets.json; strangers:
    strangers.json, None where the model does not tell how familiar an image is; speed: of the final model.
    """

    class_names: Sequence[str]
    prepared: Record
    base: Record
    search: SearchRecord
    study: Record
    refit: RefitRecord
    evaluation: Evaluation
    suspicion: Suspicion
    promises: Sequence[Promise]
    strangers: Strangers | None
    speed: Speed


def make_model_card(records: Records, params: Params) -> str:
    """The card as Markdown."""
    sections = [
        _introduce(records, params.register_.name),
        "## Results\n\n" + _describe_results(records.evaluation),
        "## Sets with a promise\n\n" + _describe_sets(records),
        "## Strangers\n\n" + describe_strangers(records.strangers),
        "## Speed and size\n\n" + describe_final(records.refit).capitalize() + ". " + describe_speed(records.speed),
        "## Known weaknesses\n\n" + _describe_weaknesses(records.evaluation),
        "## Data\n\n" + _describe_data(records, params),
        "## Base\n\n" + _describe_base(records.base),
        "## How it was searched\n\n" + _describe_search(records),
        "## How to use it\n\n" + _describe_use(records, params.register_.name),
    ]
    return "\n\n".join(sections) + "\n"


def _introduce(records: Records, name: str) -> str:
    accuracy, names = records.evaluation.score("accuracy"), records.class_names
    trained = describe_final(records.refit)
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return (
        f"# {name}\n\n"
        f"Tells {len(names)} classes of images apart: {listed}. {_with_article(records.base['name'])}: {trained}. "
        f"Accuracy on {records.evaluation.num_images} test images that no choice has seen: "
        f"**{_percent(accuracy)}** ({_confidence(records.evaluation)})."
    )


def describe_final(refit: RefitRecord) -> str:
    """What the final model is made of, on its base."""
    if refit.share == 0:
        return "a linear head on it"
    depth, count = refit.hparams.unfrozen_blocks, refit.folds if refit.combine == "mean" else 1
    kind = f"tail{'s' * (count > 1)} of its last {depth} blocks and a head" if depth else f"head{'s' * (count > 1)}"
    return f"{count} {kind}, on one frozen part" + (", mixed with a linear head on it" if refit.share < 1 else "")


def _describe_results(evaluation: Evaluation) -> str:
    rows = [
        f"| {METRICS[name].label} | {score.value:.4f} | {score.low:.4f} to {score.high:.4f} |"
        for name, score in evaluation.scores.items()
        if score
    ]
    gains = [describe_gain("the bare head on the last cut", evaluation.baseline, evaluation.gain)]
    if evaluation.every_cut and evaluation.every_cut_gain:
        gains.append(describe_gain("a linear head on every cut", evaluation.every_cut, evaluation.every_cut_gain))
    told = [*gains, describe_optimism(evaluation), describe_calibration(evaluation)]
    return "\n".join(
        [
            f"| on the test split | value | {_confidence(evaluation)} |",
            "|---|---|---|",
            *rows,
            "",
            *(f"- {line}" for line in told),
        ]
    )


def describe_optimism(evaluation: Evaluation) -> str:
    """What the search's own score was too good by."""
    optimism = 100 * evaluation.selection_optimism
    how = (
        "above the test accuracy: the best of many trials looks better than it is."
        if optimism > 0
        else "below the test accuracy, which chance can do."
    )
    return (
        f"The search's best validation score was {evaluation.search_score:.2%}, {abs(optimism):.2f} points {how} "
        "Quote the test accuracy."
    )


def describe_calibration(evaluation: Evaluation) -> str:
    """How far confidence can be believed, and what the temperature did."""
    before, after = evaluation.calibration["before"], evaluation.calibration["after"]
    how = (
        f"The calibration error is {after['ece']:.4f}, the log loss {after['log_loss']:.4f}; no temperature was fitted, because a "
        "linear head's L2 was chosen by log loss."
        if evaluation.temperature == 1
        else f"Temperature {evaluation.temperature:.3f}, fitted out of fold, took the calibration error from {before['ece']:.4f} to "
        f"{after['ece']:.4f} and the log loss from {before['log_loss']:.4f} to {after['log_loss']:.4f}."
    )
    floor = evaluation.score("ece").more["floor"]
    return f"{how} A perfectly calibrated model would show {floor:.4f} on so few images."


def describe_gain(name: str, scores: Mapping[str, Score], gain: Gain) -> str:
    """What the final model gains over another on the same test images."""
    plain = _percent(scores["accuracy"])
    if gain.wins == gain.losses == 0:
        return f"Of {name} every answer is the same ({plain})."
    return (
        f"Against {name} ({plain}): {100 * gain.value:+.2f} points "
        f"[{100 * gain.low:+.2f}, {100 * gain.high:+.2f}], {gain.wins} images won and {gain.losses} lost, "
        f"exact one-sided McNemar p = {gain.p_value:.3g}."
    )


def _describe_sets(records: Records) -> str:
    rows = [
        f"| {each.promised:g} | {each.covered.value:.3f} [{each.covered.low:.3f}, {each.covered.high:.3f}] | {each.size:.2f} | "
        f"{each.single:.1%} | {_cell(describe_worst(each))} |"
        for each in records.promises
    ]
    return "\n".join(
        [
            "`frostline predict --coverage 0.95`, and the served model with the parameter `coverage`, give a set of classes, too.",
            "",
            "| promised | sets with the right class, on test | classes in a set | sets of one class | class with the lowest share |",
            "|---|---|---|---|---|",
            *rows,
            "",
            describe_promises(records.promises, records.refit.num_images),
        ]
    )


def describe_worst(promise: Promise) -> str:
    """The class whose images' sets hold it least often."""
    name, worst = min(promise.by_class.items(), key=lambda item: item[1].value)
    return f"{name}: {worst.value:.3f} [{worst.low:.3f}, {worst.high:.3f}]"


def _describe_weaknesses(evaluation: Evaluation) -> str:
    classes = evaluation.per_class
    tested = {name: row for name, row in classes.items() if row["support"]}
    weakest = sorted(tested.items(), key=lambda item: (item[1]["recall"]["value"], item[1]["precision"]["value"]))[
        :WEAK
    ]
    lines = [
        "| class | recall | precision | test images |",
        "|---|---|---|---|",
        *(
            f"| {_cell(name)} | {_percent(row['recall'])} | {_percent(row['precision'])} | {row['support']} |"
            for name, row in weakest
        ),
        "",
    ]
    if len(tested) > len(weakest):
        lines.append(f"The {len(weakest)} weakest of {len(tested)} classes; all are in evaluation.json.")
    small = [name for name, row in classes.items() if 0 < row["support"] < SMALL]
    untested = [name for name, row in classes.items() if not row["support"]]
    if small:
        lines.append(f"Hardly tested, with fewer than {SMALL} images: {some(small, 10)}.")
    if untested:
        lines.append(f"**Not tested at all**: {some(untested, 10)}.")
    lines.append(
        "It answers with one of its classes whatever it is shown; an image of something else gets a wrong answer, "
        "sometimes a confident one: look at its familiarity. Images unlike the training data (another camera, drawings, other "
        "surroundings) were not tested."
    )
    return "\n".join(lines)


def _describe_data(records: Records, params: Params) -> str:
    prepared = records.prepared
    counts = ", ".join(f"{number} {split}" for split, number in prepared["num_images"].items())
    left_out = ", ".join(f"{number} {kind}" for kind, number in prepared.get("left_out", {}).items() if number)
    return "\n".join(
        [
            f"- Source: {redact(params.fetch.source)}",
            f"- Images: {counts}, at {prepared['image_size']} × {prepared['image_size']} pixels ({prepared['resize']})",
            f"- Left out: {left_out or 'none'}; exact and near duplicates never cross splits",
            f"- {describe_suspicion(records.suspicion)} `frostline review` shows them.",
            *_describe_decisions(prepared),
            f"- Hash of the prepared data: `{prepared['content_sha256']}`",
            f"- Training saw {params.augment.views} views of each image: "
            + (", ".join(name for step in params.augment.transforms for name in step) or "the plain one only"),
        ]
    )


def _describe_decisions(prepared: Record) -> list[str]:
    """What people changed after a review, and what that does to the test accuracy."""
    changed = prepared.get("relabelled", {})
    if not changed:
        return []
    listed = ", ".join(f"{number} of {split}" for split, number in changed.items())
    bias = (
        " Which test labels were looked at depended on a model's answers, so the test accuracy is a little in its favour."
        if changed.get("test")
        else ""
    )
    return [f"- Labels changed by people (decisions.csv): {listed}.{bias}"]


def _describe_base(base: Record) -> str:
    options = ", ".join(f"{name}={value}" for name, value in base.get("options", {}).items())
    lines = [
        f"- Network: {base['name']}{f' ({options})' if options else ''}",
        f"- Weights: {base['weights']}, from {base.get('source') or 'an unnamed source'}",
        f"- Licence of the weights: {base.get('licence') or 'not stated; ask whoever gave you the file'}",
    ]
    if base.get("sha256"):
        lines.append(f"- sha256 of the weights: `{base['sha256']}`")
    return "\n".join(lines)


def _describe_search(records: Records) -> str:
    trials, refit = records.search.trials, records.refit
    states = [trial.state for trial in trials]
    depths = sorted({trial.depth for trial in trials})
    chosen = ", ".join(f"{name} {_plain(value)}" for name, value in refit.hparams.to_record().items())
    cut = next(
        (cut["name"] for cut in records.study.get("cuts", ()) if cut["depth"] == refit.hparams.unfrozen_blocks), None
    )
    rows = [
        f"| {each.name} | {each.accuracy:.1%} [{each.low:.1%}, {each.high:.1%}] | {each.log_loss:.4f} | "
        f"{100 * each.gain:+.2f} [{100 * each.gain_low:+.2f}, {100 * each.gain_high:+.2f}] |"
        for each in refit.candidates
    ]
    notes = [describe_edge(records.search, records.study), describe_collapsed(records.search, len(records.class_names))]
    return "\n".join(
        [
            f"- {len(trials)} trials over depths {depths[0]} to {depths[-1]}: {states.count('COMPLETE')} finished, "
            f"{states.count('PRUNED')} pruned, {states.count('FAIL')} failed (study `{refit.study}`)",
            *(f"- {note}" for note in notes if note),
            f"- Tails of trial {refit.trial}: {chosen}" + (f"; everything up to `{cut}` frozen" if cut else ""),
            f"- Cross-fitted on {refit.num_images} images, {refit.folds} folds: each image judged by networks that have not "
            f"seen it. Chosen by log loss: {refit.share:.0%} tails, {1 - refit.share:.0%} linear heads"
            + (", the mean with the mirror image" if refit.mirrored else "")
            + f"; out of fold accuracy {refit.accuracy:.1%}, log loss {refit.log_loss:.4f}",
            f"- sha256 of the model: `{refit.sha256['final']}`",
            "",
            "| out of fold | accuracy (95 % interval) | log loss | points over the bare head |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _describe_use(records: Records, name: str) -> str:
    size = records.prepared["image_size"]
    return (
        "Input: uint8 images (n, "
        f"{size}, {size}, 3), RGB, 0 to 255; scaling is inside. Output: {len(records.class_names)} probabilities in the "
        f"order of the classes above{', as `probabilities`, and `familiarity`' if records.strangers else ''}.\n\n"
        "```\n"
        "frostline predict photo.jpg folder/          # the champion, in the project\n"
        "frostline serve                              # the champion behind MLflow's scoring server\n"
        "```\n\n"
        "```python\n"
        "import mlflow, pandas as pd\n\n"
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")\n'
        'model.predict(pd.DataFrame({"image": [open("photo.jpg", "rb").read()]}))  # label, probability, probabilities, familiarity\n'
        "```\n\n"
        'With Keras alone: `keras.saving.load_model("model.keras")`; decode and resize as `frostline.images.decoding` does, '
        "other decoders give other pixels."
    )


def _with_article(name: str) -> str:
    return f"{'An' if name[0] in 'AEIOUaeiou' else 'A'} {name}"


def _percent(measured: Score | Record) -> str:
    found = measured if isinstance(measured, Score) else Score.from_record(measured)
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _confidence(evaluation: Evaluation) -> str:
    return f"{100 * evaluation.confidence:g} % interval"


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
