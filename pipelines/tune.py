"""Stage `tune`: features -> the study: every trial's record, the best hparams, and what the search cost."""

from functools import partial
from pathlib import Path

from frostline.evidence.figures.search import draw_study
from frostline.evidence.ranking import choose_best
from frostline.evidence.trials import SearchRecord, describe_collapsed, describe_edge
from frostline.files import load_json, save_json, size_of
from frostline.params import load_params
from frostline.planning.closure import code_of
from frostline.process import held, if_stopped, project_root, run_stage
from frostline.search.depot import open_depot
from frostline.search.outcome import run_study
from frostline.search.places import digest_of
from frostline.search.space import with_found_depths
from frostline.search.starts import begin_study
from frostline.search.supply import put_supply
from frostline.tracking.lineage import lineage_tags
from frostline.tracking.messages import say
from frostline.tracking.owners import close_own_runs, sweep_dead_runs
from frostline.tracking.runs import close_run, open_study_run
from frostline.tracking.server import check_writing, refuse_server
from frostline.tracking.store import open_store


def main() -> None:
    params = with_found_depths(load_params())
    paths, tune, root = params.paths, params.tune, project_root()
    prepared, out = Path(paths.prepared), Path(paths.study)
    digest = digest_of(params)
    # What changes a trial: the worker and all that it runs; not this script, nor how a search is summed up.
    code = code_of("search/worker.py")
    store, depot = open_store(params.tracking, root), open_depot(params)
    with if_stopped(partial(close_own_runs, store)):
        refuse_server(store, params.register_.name)
        sweep_dead_runs(store)
        tags = lineage_tags(Path("params.yaml").read_text(encoding="utf-8"), root)
        parent = open_study_run(store, digest, params=params.model_dump(mode="json", by_alias=True), tags=tags)
        check_writing(store, parent)

        with held(root / "studies" / f"{digest}.owner", f"study {digest}"):
            study = begin_study(root / "studies", digest, code, params)
            class_names = tuple(load_json(prepared / "classes.json"))
            outcome = run_study(params, study, store, parent, class_names, put_supply(params, depot))

        best = choose_best(outcome.trials)
        search = SearchRecord(digest, best.number, tune.epochs, tuple(outcome.trials))
        stored = {name: size_of(Path(getattr(paths, name))) for name in ("views", "features")}
        features = load_json(Path(paths.features) / "features.json")
        report = {"study": digest, "parent_run_id": parent, "cuts": features["cuts"], "cache_bytes": stored}
        report |= outcome.to_record()
        save_json(out / "trials.json", search.to_record())
        save_json(out / "best.json", best.to_record())
        save_json(out / "study.json", report)
        images = draw_study(search, report, out)
        notes = [note for note in (describe_edge(search, report), describe_collapsed(search, len(class_names))) if note]
        say("tune", notes)
        close_run(
            store,
            parent,
            metrics={
                "best_val_accuracy": best.score,
                "num_trials": len(outcome.trials),
                "trials_per_minute": outcome.trials_per_minute,
                "cache_bytes": sum(stored.values()),
                **{f"seconds/{phase}": taken for phase, taken in outcome.seconds.items()},
                **({"achieved_over_limit": outcome.achieved_over_limit} if outcome.achieved_over_limit else {}),
            },
            tags={
                "frostline.best_trial": str(best.number),
                **({"mlflow.note.content": "\n\n".join(notes)} if notes else {}),
            },
            artifacts=[*images, Path(paths.views) / "preview.png", out / "trials.json", out / "study.json"],
        )


if __name__ == "__main__":
    run_stage("tune", main)
