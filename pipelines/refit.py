"""Stage `refit`: best trials -> one whole model that takes raw images, cross-fitted, and the baselines beside it."""

import shutil
from pathlib import Path

from frostline.arrays import load_split
from frostline.evidence.predictions import Predictions, save_predictions
from frostline.evidence.ranking import list_candidates
from frostline.evidence.trials import SearchRecord
from frostline.files import digest_facts, load_json, require_complete, save_json
from frostline.params import load_params
from frostline.planning.closure import hash_code, result_code
from frostline.planning.storage import trains_on_val
from frostline.process import UNFINISHED, run_stage
from frostline.scale.engines import open_engine
from frostline.tracking.messages import describe_candidates, say
from frostline.training.refit import Refitter


def main() -> None:
    params = load_params()
    paths, rules, out = params.paths, params.refit, Path(params.paths.refit)
    prepared = Path(paths.prepared)
    facts, features = require_complete(prepared), require_complete(Path(paths.features))
    search = SearchRecord.from_record(load_json(Path(paths.study) / "trials.json"))
    class_names = tuple(load_json(prepared / "classes.json"))
    train, val = load_split(prepared / "train"), load_split(prepared / "val")
    splits = [train, val] if trains_on_val(rules.train_on_val, facts["val_is_drawn"]) else [train]
    code = hash_code(result_code(Path(__file__), Path("src")))
    settings = params.model_dump(mode="json", exclude={"scale"})  # which changes no fold
    inputs = {"features": features, "study": search.to_record(), "params": settings, "code": code}
    work = UNFINISHED / f"refit-{digest_facts(inputs)}"

    with open_engine(params) as engine:
        refitter = Refitter(params, class_names, splits, work, engine)
        candidates = list_candidates(search.trials, rules.candidates)
        record, probabilities = refitter.run(search, candidates, out, val.images[:32])
    ids = [image_id for split in splits for image_id in split.ids]
    unseen = tuple(ids[row] for row in refitter.rows)
    save_predictions(
        out / "out_of_fold.csv", Predictions(unseen, refitter.labels, probabilities, class_names, "out of fold")
    )
    save_json(out / "refit.json", record.to_record())
    shutil.rmtree(work, ignore_errors=True)
    say("refit", describe_candidates(record))


if __name__ == "__main__":
    run_stage("refit", main)
