"""Stage `tune`: features -> the study: every trial's record, the best hparams, and what the search cost."""

import time
from pathlib import Path

from frostline import figures, tracking
from frostline.arrays import digest_facts, load_json, require_complete, save_json
from frostline.closure import hash_code, result_code
from frostline.params import load_params
from frostline.process import project_root, run_stage
from frostline.search import importances, list_records, open_study
from frostline.selection.ranking import choose_best
from frostline.trials import Bench, Job, fit_shared_probe, make_baseline, run_trials


def main() -> None:
    params = load_params()
    paths, tune, root = params.paths, params.tune, project_root()
    prepared, out = Path(paths.prepared), Path(paths.study)
    facts = {
        "prepared": require_complete(prepared),
        "features": load_json(Path(paths.features) / "features.json"),
        "recipe": require_complete(Path(paths.views)),
        "base": load_json(Path(paths.base) / "card.json"),
        "tune": tune.model_dump(mode="json", exclude={"num_trials", "workers", "when_code_changed"}),
        "seed": params.seed,
    }
    digest = digest_facts(facts)
    code = hash_code(result_code(Path(__file__), Path("src")))
    study = open_study(root / "studies", digest, code, tune.when_code_changed, tune.space)

    store = tracking.open_store(params.tracking, root)
    tracking.sweep_dead_runs(store)
    tags = tracking.lineage_tags(Path("params.yaml").read_text(encoding="utf-8"), root)
    parent = tracking.open_study_run(store, digest, params=params.model_dump(mode="json", by_alias=True), tags=tags)

    class_names = tuple(load_json(prepared / "classes.json"))
    started = time.monotonic()
    probe = fit_shared_probe(params)
    bench = Bench(params, len(class_names), probe)
    receipts = [bench.receipt(make_baseline(tune.space, depth)) for depth in sorted({0, tune.space.unfrozen_blocks[1]})]
    seconds = {"probe and receipt": time.monotonic() - started}

    run_trials(Job(params, study, store, parent, class_names, probe), bench)
    loaded = study.load()
    records = list_records(loaded, tune.num_trials)
    best = choose_best(records)
    seconds["trials"] = sum(record["seconds"] for record in records)

    trials = {"study": digest, "score": "val_accuracy", "baseline": 0, "best": best["number"], "epochs": tune.epochs, "trials": records}
    report = {
        "study": digest,
        "parent_run_id": parent,
        "receipts": [receipt.to_record() for receipt in receipts],
        "probe": None if probe is None else {"strength": probe.strength, "val_accuracy": probe.val_accuracy},
        "cuts": facts["features"]["cuts"],
        "importances": importances(loaded),
        "seconds": seconds,
        "trials_per_minute": 60 * len(records) / max(seconds["trials"], 1e-9),
    }
    save_json(out / "trials.json", trials)
    save_json(out / "best.json", best)
    save_json(out / "study.json", report)
    pictures = figures.draw_study(trials, report, out)
    tracking.close_run(
        store,
        parent,
        metrics={"best_val_accuracy": best["score"], "num_trials": len(records), "trials_per_minute": report["trials_per_minute"]},
        tags={"frostline.best_trial": str(best["number"])},
        artifacts=[*pictures, out / "trials.json", out / "study.json"],
    )


if __name__ == "__main__":
    run_stage("tune", main)
