"""Stage `source`: what `fetch.source` and `base.weights` hold now -> a digest, by which DVC sees that they changed.

It comes first and runs each time, so that what would lose a user's files is refused before DVC empties anything, and the
rows of outputs that it empties can be found again.
"""

from pathlib import Path

from frostline.files import load_json, save_json
from frostline.images.survey import MEMORY, SOURCE_FILE, survey_inputs
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.planning.earlier import keep_outputs
from frostline.planning.workspace import set_aside
from frostline.process import project_root, run_stage


def main() -> None:
    # The transforms are left to `augment`: to look at them loads Albumentations.
    refuse_problems(transforms=False)
    params, record, memory = load_params(), Path(SOURCE_FILE), project_root() / MEMORY
    for line in set_aside(params.paths, Path()):
        print(f"source: {line}")
    paths = params.paths
    for line in keep_outputs([paths.prepared, paths.views, paths.features], project_root(), params.storage.kept_gb):
        print(f"source: {line}")
    before = load_json(record) if record.is_file() else {}
    survey = survey_inputs(params.fetch, params.base, Path(), load_json(memory) if memory.is_file() else {}, before)
    save_json(memory, survey.memory)
    save_json(record, survey.record)
    for key, facts in survey.record.items():
        if facts and facts["num_files"]:
            print(
                f"source: {key} holds {facts['num_files']} files{'' if facts == before.get(key) else ', changed since'}"
            )


if __name__ == "__main__":
    run_stage("source", main)
