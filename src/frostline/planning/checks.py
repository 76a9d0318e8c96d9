"""What is wrong with `params.yaml` beyond its schema, found without running or building anything."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from frostline.bases.families import BUNDLED_BASE, CUSTOM, FAMILIES, base_problems, cuts_of
from frostline.bases.files import check_custom_file
from frostline.bases.packages import PACKAGES, find_package
from frostline.errors import Refused, find_secret, nearest, redact
from frostline.files import COMPLETE, load_json, path_of
from frostline.images.decisions import FILE as DECISIONS
from frostline.images.decisions import load_history
from frostline.images.sources import Generated, shown_source, source_of
from frostline.images.survey import WEIGHTS, inputs_of_base, inputs_of_fetch
from frostline.images.walk import Walk
from frostline.params import (
    Augment,
    Base,
    Fetch,
    Paths,
    Prepare,
    Scale,
    Tracking,
    Tune,
    list_problems,
    load_document,
    parse_section,
    schema_problems,
)
from frostline.planning.settings import settings_problems
from frostline.planning.workspace import find_overlaps, stranger_problems
from frostline.process import ask_git
from frostline.scale.engines import NO_RAY, has_ray

# MLflow's file store is closed: a path or file:// would fail at the first run.
STORES = (
    "sqlite",
    "postgresql",
    "postgresql+psycopg2",
    "mysql",
    "mysql+pymysql",
    "mssql",
    "http",
    "https",
    "databricks",
)


def refuse_problems(path: Path = Path("params.yaml"), *, transforms: bool = True) -> None:
    """Raises Refused that lists every problem of the file, by schema and beyond; `transforms` as in `find_problems`."""
    problems = (
        settings_problems()
        + repository_problems(path.parent)
        + find_problems(load_document(path), path.parent, transforms=transforms)
    )
    if problems:
        raise Refused(list_problems(str(path), problems))


def repository_problems(root: Path) -> list[str]:
    """Why git refuses the project's repository, which DVC would find out after the training; none where there is none."""
    if not (root / ".git").exists() or not shutil.which("git"):
        return []
    found, said = ask_git(root, "rev-parse", "--git-dir")
    if found:
        return []
    return [
        f"the project: git refuses its repository ({said}). Where it belongs to another user, as in a container: "
        f"git config --global --add safe.directory {root.resolve()}"
    ]


def find_problems(document: Any, root: Path = Path(), *, transforms: bool = True) -> list[str]:
    """Every problem of a parsed `params.yaml`, one line each: what was given, what is allowed, the nearest right word.

    A section that is wrong by the schema is left out of the further checks; the others are still looked at.
    root: the folder that relative paths of the document start from; transforms: look at those, too, which takes a second.
    """
    problems = schema_problems(document)
    base = parse_section(document, "base", Base)
    tune = parse_section(document, "tune", Tune)
    fetch = parse_section(document, "fetch", Fetch)
    augment = parse_section(document, "augment", Augment)
    prepare = parse_section(document, "prepare", Prepare)
    paths = parse_section(document, "paths", Paths)
    # What was fetched already, here or by a teammate whose results were pulled, need not be there any more.
    if fetch and not (paths and _was_fetched(fetch, root / paths.raw)):
        problems += check_source(fetch, root)
    if fetch and prepare:
        problems += check_shares(fetch, prepare)
    if base:
        problems += check_base(base, root, fetched=paths is not None and _base_was_fetched(base, root / paths.base))
    if base and tune:
        problems += check_depth(base, tune)
    if augment and transforms:
        problems += check_views(augment, base.image_size if base else None)
    if paths:
        problems += check_places(paths, fetch, base, root)
    if tracking := parse_section(document, "tracking", Tracking):
        problems += check_tracking(tracking)
    if scale := parse_section(document, "scale", Scale):
        problems += check_scale(scale, tune)
    return problems + check_decisions(root)


def check_decisions(root: Path) -> list[str]:
    """Problems of the table of decisions about labels, as `prepare` would find them after the download."""
    try:
        load_history(root / DECISIONS)
    except Refused as problem:
        return [str(problem)]
    return []


def check_source(fetch: Fetch, root: Path) -> list[str]:
    """Problems of `fetch.source`: nothing there, no archive, a password in it, an extra that is not installed."""
    try:
        source_of(fetch).check(root)
    except (Refused, OSError) as problem:
        return [f"fetch.source: {problem}"]
    return []


def check_shares(fetch: Fetch, prepare: Prepare) -> list[str]:
    """Problems of the split: nothing left to train on, or too few images in a class."""
    problems = []
    if prepare.val_share + prepare.test_share >= 0.95:
        problems.append(
            f"prepare: val_share {prepare.val_share} and test_share {prepare.test_share} leave too little to train on; "
            "their sum must be below 0.95"
        )
    if isinstance(source_of(fetch), Generated) and fetch.images_per_class < prepare.min_per_class:
        problems.append(
            f"fetch.images_per_class: given was {fetch.images_per_class}, below prepare.min_per_class ({prepare.min_per_class})"
        )
    return problems


def check_base(base: Base, root: Path, *, fetched: bool = False) -> list[str]:
    """Problems of the base: its family, options, image size, weights and output layer.

    fetched: its weights file was copied to `paths.base` already, and need not be where it was.
    """
    problems = base_problems(base.name, base.image_size, base.options)
    is_whole = not problems
    if is_whole or base.weights != "bundled":
        problems += _weights_problems(base, root, fetched)
    if is_whole and base.name in FAMILIES and base.output_layer is not None:
        cuts = cuts_of(base.name, base.options)
        if base.output_layer not in cuts:
            problems.append(
                f"base.output_layer: {base.output_layer!r} is no cut of {base.name}{nearest(base.output_layer, cuts)}; "
                f"allowed: {', '.join(cuts)}"
            )
    return problems


def check_depth(base: Base, tune: Tune) -> list[str]:
    """Problems of the depths to try: more blocks than the base has below its output layer."""
    family = FAMILIES.get(base.name)
    if family is None or base_problems(base.name, base.image_size, base.options):
        return []
    first, last = tune.space.unfrozen_blocks
    # `all` and `auto` are no deeper than the base is; what they begin at may be.
    deepest = last if isinstance(last, int) else first
    if family.head_only_reason and deepest > 0:
        return [
            f"tune.space.unfrozen_blocks: {base.name} offers depth 0 only, because {family.head_only_reason}; given was {deepest}"
        ]
    cuts = cuts_of(base.name, base.options)
    output = base.output_layer or cuts[-1]
    if output not in cuts or deepest <= cuts.index(output):
        return []
    return [
        f"tune.space.unfrozen_blocks: {base.name} has {cuts.index(output)} blocks between its first cut and {output}; "
        f"given was {deepest}. `frostline blocks {base.name}` lists them"
    ]


def describe_depths(base: Base, tune: Tune) -> list[str]:
    """What `all` and `auto` can mean, a line; empty where the depths are numbers or only the base's graph can tell."""
    first, last = tune.space.unfrozen_blocks
    if isinstance(last, int):
        return []
    if base.name not in FAMILIES:
        return [
            f"tune.space.unfrozen_blocks: as deep as the graph of {base.weights} is; `frostline plan` says how deep"
        ]
    cuts = cuts_of(base.name, base.options)
    blocks = cuts.index(base.output_layer or cuts[-1])
    if last == "all":
        return [f"tune.space.unfrozen_blocks: {first} to {blocks}, all blocks of {base.name}"]
    return [
        f"tune.space.unfrozen_blocks: {first} to {blocks} at most, by bytes and minutes; `frostline plan` says how deep"
    ]


def check_views(augment: Augment, image_size: int | None) -> list[str]:
    """Problems of the transforms: unknown ones, misspelt arguments, impossible values, another size at their end."""
    from frostline.images.transforms import check_transforms

    if augment.views > 1 and not augment.transforms:
        return [
            f"augment.transforms: empty, so that all {augment.views} views would be equal. Set views to 1 or add some"
        ]
    try:
        check_transforms(augment.transforms, image_size)
    except Refused as refusal:
        lines = str(refusal).splitlines()
        return [
            line if line.startswith("augment.") else f"augment.{line}" for line in map(str.strip, lines[1:] or lines)
        ]
    return []


def check_places(paths: Paths, fetch: Fetch | None, base: Base | None, root: Path) -> list[str]:
    """Problems of the paths: outputs that would take what is the project's or the user's, and files of theirs in one.

    Raises Refused where dvc.lock, which knows whose files are there, cannot be read.
    """
    inputs = {**(inputs_of_fetch(fetch) if fetch else {}), **(inputs_of_base(base) if base else {})}
    try:
        if fetch and fetch.follow_links and "fetch.source" in inputs:
            walk = Walk(path_of(inputs["fetch.source"], root))
            inputs |= {f"fetch.source (by a link to {link})": str(link) for link in walk.outer_links()}
        overlaps = find_overlaps(paths, inputs, root)
    except Refused:
        return []  # no path of this machine: said where the source and the weights are looked at
    return overlaps or stranger_problems(paths, root)


def check_tracking(tracking: Tracking) -> list[str]:
    """Problems of `tracking.uri`: a store that MLflow no longer opens, or a password in it."""
    if tracking.uri is None:
        return []
    return _url_problems("tracking.uri", tracking.uri, STORES)


def check_scale(scale: Scale, tune: Tune | None) -> list[str]:
    """Problems of engine ray and of a store on S3: they are not installed, or workers of the other engine are asked for."""
    problems = []
    if (scale.store or "").startswith("s3://") and not find_spec("s3fs"):
        problems.append("scale.store: s3:// needs s3fs, which comes with the extra `cluster`: pip install s3fs")
    if scale.engine == "local":
        return problems
    if not has_ray():
        problems.append(f"scale.engine: {NO_RAY}")
    if tune and tune.workers > 1:
        problems.append(
            f"tune.workers: given was {tune.workers}, which are workers of engine local; with engine ray say scale.workers"
        )
    return problems


def _was_fetched(fetch: Fetch, folder: Path) -> bool:
    return _record(folder, COMPLETE).get("source") == shown_source(fetch.source)


def _base_was_fetched(base: Base, folder: Path) -> bool:
    card = _record(folder, "card.json") if _record(folder, COMPLETE) else {}
    came = card.get("weights") if base.weights == "package" else card.get("source")
    return card.get("name") == base.name and came == Path(base.weights).name


def _record(folder: Path, name: str) -> dict[str, Any]:
    """A record of an output; {} where it is not there, or the output's path is none at all."""
    try:
        return dict(load_json(folder / name))
    except (OSError, ValueError):
        return {}


def _weights_problems(base: Base, root: Path, fetched: bool) -> list[str]:
    weights = base.weights
    if base.name == "custom" and not weights.endswith(".keras"):
        return [f"base.weights: a custom base is a .keras file; given was {weights!r}"]
    if weights == "bundled":
        return _bundled_problems(base)
    if weights == "package" and not fetched:
        return _package_problems(base)
    if weights == "imagenet" and base.name in PACKAGES:
        return [f"base.weights: Keras has no weights of {base.name}, a package has: set base.weights to package"]
    if weights in WEIGHTS:
        return []
    try:
        path = path_of(weights, root)
    except Refused as refusal:
        return [f"base.weights: {refusal}"]
    if not path.is_file() and not fetched:
        return [
            f"base.weights: given was {weights!r}, which is no file{nearest(weights, WEIGHTS)}; "
            f"allowed: {', '.join(WEIGHTS)}, or the path of a .weights.h5, .h5 or .keras file"
        ]
    if base.name == CUSTOM and path.is_file():
        try:
            check_custom_file(path)
        except Refused as refusal:
            return [str(refusal)]
    if path.suffix not in (".h5", ".keras"):
        return [f"base.weights: {weights!r} ends in neither .weights.h5, .h5 nor .keras"]
    return []


def _package_problems(base: Base) -> list[str]:
    try:
        find_package(base.name)
    except Refused as refusal:
        return [str(refusal)]
    return []


def _bundled_problems(base: Base) -> list[str]:
    if not (BUNDLED_BASE / "card.json").is_file():
        return [
            f"base.weights: the bundled weights are missing from this installation ({BUNDLED_BASE}). Install frostline again"
        ]
    card = load_json(BUNDLED_BASE / "card.json")
    problems = []
    if base.name != card["name"]:
        problems.append(f"base.weights: the bundled weights are those of {card['name']}; base.name is {base.name!r}")
    elif base.options != card["options"]:
        problems.append(f"base.options: the bundled weights need {card['options']}; given was {base.options}")
    return problems


def _url_problems(place: str, url: str, schemes: tuple[str, ...]) -> list[str]:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return [f"{place}: {redact(url)!r} is no address: {error}"]
    problems = []
    if parts.scheme not in schemes:
        problems.append(
            f"{place}: {parts.scheme or url!r} is no kind of address that works here; allowed: {', '.join(schemes)}"
        )
    if parts.scheme in ("http", "https") and not parts.hostname:
        problems.append(f"{place}: {redact(url)!r} names no host")
    if parts.password or find_secret(url):
        # dvc.lock and every MLflow run would hold it.
        problems.append(
            f"{place}: holds a secret, which would be written to dvc.lock and MLflow. Use the environment or ~/.netrc"
        )
    return problems
