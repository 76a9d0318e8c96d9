"""Stage `register`: final model and its evaluation -> their run in MLflow, and a version of the registered model, the challenger."""

import os
from functools import partial
from pathlib import Path

from frostline.errors import Refused
from frostline.evidence.conformal import load_sets
from frostline.evidence.evaluation import Evaluation
from frostline.evidence.refits import RefitRecord
from frostline.files import load_json, require_complete, save_json, sha256_of
from frostline.images.manifest import MANIFEST
from frostline.params import load_params
from frostline.process import if_stopped, project_root, run_stage
from frostline.registry.data import beside_champion
from frostline.registry.versions import AGAINST, describe_accuracy, flat_metrics, lineage_of, register, without_title
from frostline.serving.golden import load_golden
from frostline.serving.model import Card
from frostline.tracking.finals import log_final
from frostline.tracking.messages import describe_registration, explain_experiment, say
from frostline.tracking.owners import close_own_runs, sweep_dead_runs
from frostline.tracking.runs import close_run
from frostline.tracking.server import claim_model
from frostline.tracking.store import open_store


def main() -> None:
    params = load_params()
    paths, name, root = params.paths, params.register_.name, project_root()
    prepared, reports, models = Path(paths.prepared), Path(paths.evaluation), Path(paths.refit)
    refit = RefitRecord.from_record(load_json(models / "refit.json"))
    evaluation = Evaluation.from_record(load_json(reports / "evaluation.json"))
    facts, classes = require_complete(prepared), tuple(load_json(prepared / "classes.json"))
    sha256 = sha256_of(models / "final.keras")
    if sha256 != refit.sha256["final"]:
        raise Refused(f"{models / 'final.keras'} is not the model that `refit` wrote. Run `dvc repro --force refit`.")

    store = open_store(params.tracking, root)
    sweep_dead_runs(store)
    with if_stopped(partial(close_own_runs, store)):
        text = Path("params.yaml").read_text(encoding="utf-8")
        run_id = log_final(store, refit, evaluation, text, models, reports, prepared / MANIFEST)
        registration = {"name": name, "version": None, "sha256": sha256, "run_id": run_id}
        if experiment := os.environ.get("DVC_EXP_NAME"):
            # An experiment must not move an alias. To DVC its stage is done, so what it found is registered by force.
            registration["reason"] = explain_experiment(experiment)
            say("register", f"not registered, because {registration['reason']}")
        else:
            rules = params.prepare
            how = (rules.min_side, rules.max_megapixels, sha256, rules.bits, load_sets(reports / "sets.json"))
            card = Card(classes, facts["image_size"], facts["resize"], *how)
            version = register(
                store,
                name,
                model_file=models / "final.keras",
                run_id=run_id,
                card=card,
                golden=load_golden(reports / "predictions.csv", prepared / "test", classes),
                description=without_title((reports / "model_card.md").read_text(encoding="utf-8")),
                metrics=flat_metrics(evaluation),
                params=refit.hparams.to_record(),
                tags={
                    "frostline.test_accuracy": describe_accuracy(evaluation),  # what a reader of the list wants first
                    "frostline.data.sha256": facts["content_sha256"],
                    **beside_champion(store, name, prepared, reports),
                    **lineage_of(store, run_id),
                },
            )
            claim_model(store, name)
            registration |= {"version": version.number, "model_id": version.model_id, "uri": version.uri}
            say("register", describe_registration(name, version.number, describe_accuracy(evaluation)))
            say("register", version.tags.get(AGAINST, []))
        close_run(store, run_id)
        save_json(Path(paths.registration), registration)


if __name__ == "__main__":
    run_stage("register", main)
