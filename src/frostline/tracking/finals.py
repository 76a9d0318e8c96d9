"""The run of a final model: written whole from what `refit` and `evaluate` left, by the one stage that registers it."""

from pathlib import Path

from frostline.evidence.evaluation import Evaluation
from frostline.evidence.refits import RefitRecord
from frostline.evidence.scores import METRICS
from frostline.tracking.lineage import lineage_tags
from frostline.tracking.runs import log_to_run, open_final_run, reopen_final_run
from frostline.tracking.store import Store


def log_final(
    store: Store,
    refit: RefitRecord,
    evaluation: Evaluation,
    params_text: str,
    models: Path,
    reports: Path,
    manifest: Path,
) -> str:
    """The id of the final run, left open: a new one, or that of this very model where the store knows it.

    params_text: of params.yaml; models, reports: folders with `refit.json`, `out_of_fold.csv` and with the evaluation's files;
    manifest: the list of the images.
    """
    name = (
        f"final · trial {refit.trial:02d} · depth {refit.hparams.unfrozen_blocks}"
        if refit.share
        else "final · linear heads"
    )
    params = {**refit.hparams.to_record(), "refit.share": refit.share, "refit.mirrored": refit.mirrored}
    tags = {
        **lineage_tags(params_text, store.root),
        "frostline.study": refit.study,
        "frostline.trial": str(refit.trial),
        "frostline.trial_run": refit.trial_run,
        "frostline.sha256": refit.sha256["final"],
    }
    run_id = reopen_final_run(store, refit.sha256["final"], tags, params) or open_final_run(
        store, name=name, params=params, tags=tags
    )
    metrics = {f"test_{name}": evaluation.score(name).value for name, metric in METRICS.items() if metric.logged}
    metrics |= {"selection_optimism": evaluation.selection_optimism, "test_gain": evaluation.gain.value}
    metrics |= {"oof_accuracy": refit.accuracy, "oof_log_loss": refit.log_loss, "temperature": refit.temperature}
    texts = [models / "refit.json", models / "out_of_fold.csv", manifest]
    written = ["model_card.md", "report.html", "evaluation.json", "predictions.csv", "suspicious.csv"]
    written += ["sets.json", "strangers.json"]
    texts += [reports / file for file in written]
    # Of its beginning, or a run that is gone on with would have each step of its curves twice.
    begun = store.client.get_run(run_id).info.start_time / 1000
    files = [*texts, *sorted(reports.glob("*.png"))]
    log_to_run(store, run_id, metrics=metrics, curves=refit.curves, artifacts=files, at=begun)
    return run_id
