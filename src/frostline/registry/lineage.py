"""Where a version comes from, down to data and commit, and what came of a run."""

from collections.abc import Mapping

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from frostline.errors import Refused
from frostline.registry.versions import Version, list_versions
from frostline.tracking.store import Store

Facts = list[tuple[str, str]]  # what -> which, in the order to print


def trace_version(store: Store, version: Version) -> Facts:
    """The chain version -> run -> trial -> params -> data -> commit."""
    facts = [
        ("version", f"{version.name} {version.number}"),
        ("model sha256", version.sha256),
        ("model id", version.model_id),
    ]
    # The version has its own copy of what matters, so that deleting old runs breaks no trace.
    tags, params = dict(version.tags), {}
    run = _find_run(store, version.run_id)
    if run is None:
        facts.append(("final run", f"{version.run_id} (deleted since)"))
    else:
        facts.append(("final run", f"{run.info.run_name}, {run.info.run_id}"))
        tags, params = {**run.data.tags, **tags}, run.data.params
    return facts + _origin(tags, params)


def trace_run(store: Store, run_id: str) -> Facts:
    """What a run is, where it comes from, and what came of it: upwards to the versions."""
    run = _find_run(store, run_id)
    if run is None:
        raise Refused(
            f"There is no run {run_id!r} in {store.shown_uri}. `frostline compare --ids` lists the runs there are."
        )
    tags = run.data.tags
    facts = [(f"{tags.get('frostline.kind', '')} run".strip(), f"{run.info.run_name}, {run.info.run_id}")]
    facts += _origin(tags, run.data.params if tags.get("frostline.kind") != "study" else {})
    for final in _finals_of(store, run):
        facts.append(("became", f"{final.info.run_name}, {final.info.run_id}"))
    ends = {run_id} | {final.info.run_id for final in _finals_of(store, run)}
    made = {
        version.number: version
        for model in store.client.search_registered_models()
        for version in list_versions(store, model.name)
        if version.run_id in ends
    }
    facts += [("registered as", f"{version.name} {version.number}") for _, version in sorted(made.items())]
    return facts if made else [*facts, ("registered as", "nothing")]


def _origin(tags: Mapping[str, str], params: Mapping[str, str]) -> Facts:
    facts: Facts = []
    for title, key in (
        ("study", "frostline.study"),
        ("trial", "frostline.trial"),
        ("trial run", "frostline.trial_run"),
    ):
        if tags.get(key):
            facts.append((title, tags[key]))
    if params:
        facts.append(("hparams", ", ".join(f"{name} {value}" for name, value in sorted(params.items()))))
    named = {
        "frostline.params.sha256": "params.yaml sha256",
        "frostline.seed": "seed",
        "frostline.data.sha256": "images sha256",
        "frostline.git.commit": "commit",
        "frostline.git.changes": "uncommitted changes",
        "frostline.dvc_exp_name": "DVC experiment",
        "frostline.device": "device",
        "frostline.versions": "versions",
    }
    facts += [(f"data/{key.removeprefix('frostline.md5.')} md5", tags[key]) for key in sorted(tags) if ".md5." in key]
    return facts + [(title, tags[key]) for key, title in named.items() if tags.get(key)]


def _find_run(store: Store, run_id: str) -> Run | None:
    try:
        return store.client.get_run(run_id)
    except MlflowException:
        return None


def _finals_of(store: Store, run: Run) -> list[Run]:
    tags = run.data.tags
    if tags.get("frostline.kind") == "study":
        where = f"tags.`frostline.study` = '{tags['frostline.study']}'"
    elif tags.get("frostline.kind") == "trial":
        where = f"tags.`frostline.trial_run` = '{run.info.run_id}'"
    else:
        return []
    found: list[Run] = store.client.search_runs(
        [run.info.experiment_id], f"{where} and tags.`frostline.kind` = 'final'", max_results=100
    )
    return found
