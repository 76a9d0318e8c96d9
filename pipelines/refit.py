"""Stage `refit`: best hparams -> one whole model that takes raw pictures, and the head-only baseline beside it."""

from pathlib import Path

import numpy as np

from frostline.arrays import load_split
from frostline.evidence.trials import SearchRecord
from frostline.files import load_json, save_json
from frostline.params import load_params
from frostline.process import project_root, run_stage
from frostline.tracking.lineage import lineage_tags
from frostline.tracking.runs import log_to_run, open_final_run
from frostline.tracking.store import open_store
from frostline.training.bench import Bench, fit_shared_probe
from frostline.training.refit import refit


def main() -> None:
    params = load_params()
    paths, root, out = params.paths, project_root(), Path(params.paths.refit)
    search = SearchRecord.from_record(load_json(Path(paths.study) / "trials.json"))
    best = search.trial(search.best)
    class_names = load_json(Path(paths.prepared) / "classes.json")
    bench = Bench(params, len(class_names), fit_shared_probe(params))
    val = load_split(Path(paths.prepared) / "val")
    probe_images = np.asarray(val.images[:64])

    final = refit(bench, best.hparams, params.refit, out / "final.keras", probe_images)
    first = search.trial(search.baseline)
    baseline = refit(bench, first.hparams, params.refit, out / "baseline.keras", probe_images)

    store = open_store(params.tracking, root)
    run_id = open_final_run(
        store,
        name=f"final · trial {best.number:02d} · depth {best.depth}",
        params=best.hparams.to_record(),
        tags={
            **lineage_tags(Path("params.yaml").read_text(encoding="utf-8"), root),
            "frostline.study": search.study,
            "frostline.trial": str(best.number),
            "frostline.trial_run": best.run_id,
        },
    )
    record = {
        "run_id": run_id,
        "study": search.study,
        "trial": best.number,
        **final.to_record(),
        "baseline": baseline.to_record(),
    }
    save_json(out / "refit.json", record)
    metrics = {
        "best_val_accuracy": final.val_accuracy,
        "best_val_loss": final.val_loss,
        "temperature": final.temperature,
    }
    log_to_run(store, run_id, metrics=metrics, curves=final.curves, artifacts=[out / "refit.json"])


if __name__ == "__main__":
    run_stage("refit", main)
