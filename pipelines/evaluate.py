"""Stage `evaluate`: final model and test split -> scores with intervals, predictions, suspicious labels, card and report."""

from functools import partial
from pathlib import Path

import numpy as np

from frostline.arrays import load_split
from frostline.evidence.card import Records, make_model_card
from frostline.evidence.conformal import find_thresholds, keep_promises, save_promises
from frostline.evidence.evaluation import make_evaluation
from frostline.evidence.explanation import explain
from frostline.evidence.figures.evaluation import draw_evaluation, draw_suspects
from frostline.evidence.figures.search import learning_curves
from frostline.evidence.predictions import BASELINES, Predictions, load_predictions, pick_examples, save_predictions
from frostline.evidence.refits import RefitRecord
from frostline.evidence.report import Findings, make_report
from frostline.evidence.speed import measure_speed
from frostline.evidence.strangers import meet_strangers
from frostline.evidence.suspicion import find_suspects, save_suspects, sum_up
from frostline.evidence.trials import SearchRecord
from frostline.files import load_json, require_complete, save_json
from frostline.params import load_params
from frostline.process import run_stage
from frostline.seeding import derive_seed
from frostline.serving.model import load_network, predict, predict_outputs, predict_probabilities
from frostline.tracking.messages import describe_test, say


def main() -> None:
    params = load_params()
    paths, rules = params.paths, params.evaluate
    prepared, models, study, out = (Path(p) for p in (paths.prepared, paths.refit, paths.study, paths.evaluation))
    facts, splits = require_complete(prepared), {name: load_split(prepared / name) for name in ("train", "val", "test")}
    class_names = tuple(load_json(prepared / "classes.json"))
    refit = RefitRecord.from_record(load_json(models / "refit.json"))
    search = SearchRecord.from_record(load_json(study / "trials.json"))
    test, labels = splits["test"], np.asarray(splits["test"].labels)
    final, baselines = (load_network(models / f"{name}.keras", refit.sha256[name]) for name in ("final", "baselines"))
    probabilities, familiarity = predict(final, test.images)
    predictions = Predictions(test.ids, labels, probabilities, class_names, "test", familiarity)
    found = predict_outputs(baselines, test.images)
    plain, every_cut = (
        Predictions(test.ids, labels, found[name], class_names, "test") if name in found else None for name in BASELINES
    )
    assert plain is not None
    drawn = {"resamples": rules.resamples, "confidence": rules.confidence, "seed": derive_seed(params.seed, "evaluate")}
    drawn |= {"search_score": search.trial(search.best).score, "temperature": refit.temperature}
    evaluation = make_evaluation(predictions, plain, every_cut, **drawn)
    unseen = load_predictions(models / "out_of_fold.csv")
    promises = keep_promises(find_thresholds(unseen.labels, unseen.probabilities), predictions, rules.confidence)
    strangers = meet_strangers(predictions, partial(predict, final), test.images.shape[1], params)
    suspects = find_suspects([unseen, predictions], splits, partial(predict_probabilities, final))
    examples = pick_examples(predictions, rules.explained)
    heatmaps = explain(final, np.asarray(test.images[np.sort(examples)]), predictions.predicted[np.sort(examples)])
    speed = measure_speed(partial(predict, final), test.images, models / "final.keras")
    base, known = load_json(Path(paths.base) / "card.json"), load_json(study / "study.json")
    findings = (refit, evaluation, sum_up(suspects), promises, strangers, speed)
    records = Records(class_names, facts, base, search, known, *findings)
    save_json(out / "evaluation.json", evaluation.to_record())
    save_promises(out / "sets.json", promises)
    save_json(out / "strangers.json", strangers and strangers.to_record())
    save_predictions(out / "predictions.csv", predictions)
    save_predictions(out / "baseline_predictions.csv", plain)
    (out / "model_card.md").write_text(make_model_card(records, params), "utf-8")
    save_suspects(out / "suspicious.csv", suspects)
    draw_suspects(suspects, splits, out / "suspicious.png", count=rules.worst_mistakes)
    draw_evaluation(predictions, evaluation, test.images, np.sort(examples), heatmaps, out, worst=rules.worst_mistakes)
    if refit.curves:
        learning_curves({f"first fold, trial {refit.trial}": refit.curves}, out / "learning_curves.png")
    figures = [*sorted(out.glob("*.png")), study / "frost_line.png", study / "search_history.png"]
    (out / "report.html").write_text(make_report(records, params, Findings(predictions, suspects, figures)), "utf-8")
    say("evaluate", describe_test(evaluation))


if __name__ == "__main__":
    run_stage("evaluate", main)
