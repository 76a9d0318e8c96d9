"""`params.yaml` read and checked once, into frozen sections that refuse what they do not know."""

import codecs
import math
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from frostline.errors import Refused, nearest
from frostline.hparams import HPARAMS, Hparam

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


def _known_encoding(name: str) -> str:
    try:
        codecs.lookup(name)
    except (LookupError, ValueError):
        raise ValueError("not an encoding that Python knows, for instance cp1252, cp437 or gb18030") from None
    return name


class Section(BaseModel):
    """A part of `params.yaml`: frozen, strict about types, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


SectionKind = TypeVar("SectionKind", bound=Section)


class Paths(Section):
    """Where each stage writes; relative to the workspace."""

    raw: str
    base: str
    prepared: str
    views: str
    features: str
    study: str
    refit: str
    evaluation: str
    registration: str


class Fetch(Section):
    """Where the images come from."""

    # A folder, an archive (path or https URL), `tfds:<name>`, a named source, or `generated`.
    source: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    # Images per class of `generated`.
    images_per_class: Positive = 120
    max_extract_gb: Annotated[float, Field(gt=0)] = 50.0
    allow_private: bool = False
    # Follow links that lead out of the folder; what they lead to is copied like the rest.
    follow_links: bool = False
    # Encoding of file and folder names that are not UTF-8, for instance cp437 or gb18030; null refuses them.
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = None


class Base(Section):
    """The pre-trained network and where its weights come from."""

    # A family that `frostline blocks` lists, or `custom` for a `.keras` model of one's own.
    name: str
    # `package`, `bundled`, `imagenet`, `random`, or the path of a `.weights.h5`, a legacy `.h5` or a `.keras` file.
    weights: str
    image_size: Annotated[int, Field(ge=32, le=1024)]
    # The layer whose output the head sits on; null means the base's own last layer.
    output_layer: str | None = None
    # Constructor options of the family, for instance {alpha: 0.35}.
    options: dict[str, Any] = {}


class Prepare(Section):
    """How images are decoded, checked, de-duplicated and split."""

    resize: Literal["squash", "crop", "pad"] = "squash"
    val_share: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.2
    test_share: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.2
    # How many bits images stored in 16 bits really use; 12 for most X-rays and cameras. What is brighter becomes white.
    bits: Annotated[int, Field(ge=9, le=16)] = 16
    min_side: Positive = 16
    max_megapixels: Annotated[float, Field(gt=0)] = 50.0
    min_per_class: Annotated[int, Field(ge=3)] = 5
    max_rejected_share: Share = 0.05
    # Hamming distance of 64-bit dHashes up to which two images count as the same; null switches the check off.
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] | None = 4
    allow_leak: bool = False


class Augment(Section):
    """The views: view 0 is the plain image, the others go through the transforms."""

    views: Positive
    # Albumentations transforms in order, each `{Name: {argument: value}}`.
    transforms: list[dict[str, dict[str, Any]]]


class Extract(Section):
    """The pass through the frozen prefix."""

    batch_size: Positive = 64
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # Look for near duplicates that hashes miss: cropped, mirrored, recoloured; docs/near-duplicates.md.
    near_duplicates: bool = True
    # Refuse a base whose stored statistics say that it does not know these images; docs/decisions/0016-base-knows-its-input.md.
    check_input: bool = True


class Storage(Section):
    """What the stages may keep on disk."""

    # Of views and features together, in GB (1e9 bytes).
    budget_gb: Annotated[float, Field(gt=0)] = 20.0
    # Of outputs of earlier runs, whose rows need not be made again, in GB. Most are links that take no bytes of their own.
    kept_gb: Annotated[float, Field(ge=0)] = 40.0


class Range(Section):
    """A closed interval that the search draws from; `log` draws its logarithm evenly."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="before")
    @classmethod
    def _accept_short_forms(cls, given: Any) -> Any:
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            return {"low": float(given), "high": float(given)}
        if isinstance(given, list) and len(given) == 2:
            given = {"low": given[0], "high": given[1]}
        if isinstance(given, dict):
            return {
                key: float(value) if isinstance(value, int) and key != "log" else value for key, value in given.items()
            }
        return given

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            raise ValueError(f"low must not be above high, and both finite: [{self.low}, {self.high}]")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must be above 0: [{self.low}, {self.high}]")
        return self


class Deepest(Section):
    """What `auto` may be told: minutes of a trial that sees every view once, at a nominal speed in 1e9 operations a second.

    Nominal, so that the same params mean the same search wherever and whenever it runs; see planning/depths.py.
    """

    minutes: Annotated[float, Field(gt=0)] | None = None
    gflops: Annotated[float, Field(gt=0)] | None = None


def _read_depths(given: Any) -> Any:
    """One depth, or the first and the last; a word or limits alone are those of the last."""
    if isinstance(given, int) and not isinstance(given, bool):
        return (given, given)
    if isinstance(given, (str, dict, Deepest)):
        return (0, given)
    return tuple(given) if isinstance(given, list) else given


def _kind_of_last(given: Any) -> str:
    return "word" if isinstance(given, str) else "limits" if isinstance(given, (dict, Deepest)) else "number"


def _read_choices(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


def _check_depths(depths: tuple[int, Any]) -> tuple[int, Any]:
    if isinstance(depths[1], int) and depths[0] > depths[1]:
        raise ValueError(f"the first depth is above the second: {list(depths)}")
    return depths


def _check_within(hparam: Hparam, drawn: Range) -> Range:
    if drawn.low < hparam.low or drawn.high > hparam.high:
        raise ValueError(f"allowed is {hparam.low:g} to {hparam.high:g}, given was [{drawn.low:g}, {drawn.high:g}]")
    return drawn


def _domain_of(hparam: Hparam) -> Any:
    """The type of a hyperparameter's entry in `tune.space`."""
    depth = Annotated[int, Field(ge=0)]
    match hparam.kind:
        case "real":
            return Annotated[Range, AfterValidator(partial(_check_within, hparam))]
        case "depth":
            last = Annotated[
                Annotated[depth, Tag("number")]
                | Annotated[Literal["all", "auto"], Tag("word")]
                | Annotated[Deepest, Tag("limits")],
                Discriminator(_kind_of_last),
            ]
            return Annotated[tuple[depth, last], BeforeValidator(_read_depths), AfterValidator(_check_depths)]
        case "choice":
            one: Any = Literal[hparam.allowed] if hparam.allowed else depth
            return Annotated[list[one], Field(min_length=1), BeforeValidator(_read_choices)]


class Depths(Section):
    """A space's depths."""

    @property
    def depths(self) -> tuple[int, int]:
        """The first and the last, once `extract` has made numbers of `all` and `auto` (planning/depths.py)."""
        first, last = self.unfrozen_blocks  # type: ignore[attr-defined]
        assert isinstance(last, int), f"{last} is not resolved"
        return first, last


if TYPE_CHECKING:

    class Space(Depths):
        """What a trial tries: for each hyperparameter a number, [low, high], {low, high, log} or a list of choices."""

        unfrozen_blocks: tuple[int, int | str | Deepest]
        head_units: list[int]
        optimizer: list[str]

        def __getattr__(self, name: str) -> Any: ...

else:
    # A field for each hyperparameter that hparams.py declares.
    Space = create_model(
        "Space",
        __base__=Depths,
        **{
            name: (_domain_of(hparam), ... if hparam.default is None else hparam.default)
            for name, hparam in HPARAMS.items()
        },
    )


class Tune(Section):
    """The search."""

    num_trials: Positive
    epochs: Positive
    batch_size: Positive = 32
    pooling: Literal["avg", "max", "flatten"] = "avg"
    schedule: Literal["constant", "cosine"] = "cosine"
    class_weights: Literal["none", "balanced"] = "none"
    # At a quarter and at half of the epochs, median stops what is below the median of the trials before, halving what is
    # not in their better half (Optuna's MedianPruner and SuccessiveHalvingPruner); see
    # docs/decisions/0010-pruning.md.
    pruning: Literal["none", "median", "halving"] = "median"
    # Stop a trial after so many epochs without a better validation score; null = never.
    patience: Positive | None = None
    # Start each head at the linear head on what it sees, fitted to its optimum (LP-FT); docs/decisions/0013-linear-heads.md.
    probe: bool = True
    # After the linear heads, a study tries what so many of the best trials of the last study on this base did; 0 = none.
    # More than one brought nothing (docs/changes.md).
    start_from: Annotated[int, Field(ge=0)] = 1
    workers: Positive = 1
    # What to do with a study whose training code has changed since: ask, keep or restart.
    when_code_changed: Literal["ask", "keep", "restart"] = "ask"
    space: Space


class Refit(Section):
    """The final model: the best trials trained again on all images but one fold, once for each fold."""

    folds: Annotated[int, Field(ge=2, le=20)] = 5
    # So many of the best trials are cross-fitted; the lowest out-of-fold log loss wins.
    candidates: Positive = 1
    # mean: the folds' tails on one prefix, probabilities averaged; average_weights: one tail with the mean of their weights;
    # single: one tail trained on all images.
    combine: Literal["mean", "average_weights", "single"] = "mean"
    # Does the model answer for the image and its mirror image? auto: where a flip was among the transforms, unless the
    # out-of-fold log loss is more than one standard error higher with it.
    mirrored: Literal["auto", "yes", "no"] = "auto"
    # Are validation images trained on, once they have chosen? drawn: where `prepare` drew them; a validation split that the
    # folder brings may be another camera or another year, set apart on purpose.
    train_on_val: Literal["drawn", "always", "never"] = "drawn"


class Evaluate(Section):
    """The report on the test split."""

    resamples: Annotated[int, Field(ge=100)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    worst_mistakes: Positive = 24
    explained: Positive = 12


class Register(Section):
    """The registry's name for the model."""

    name: Annotated[str, Field(pattern=r"^[^/:]+$")]


class Promote(Section):
    """The gate's rules; see docs/promotion.md."""

    policy: Literal["better", "not_worse"] = "not_worse"
    margin: Share = 0.01
    significance: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    # Whose the significance is: a test split's, over all comparisons on it, or each comparison's own.
    budget: Literal["split", "comparison"] = "split"
    min_test_images: Positive = 100
    # The first champion's lower confidence bound must be above this and above the majority class's share.
    accuracy_floor: Share = 0.0
    max_class_drop: Share = 0.1
    min_class_images: Positive = 30
    max_ece: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    max_latency_ms: Annotated[float, Field(gt=0)] = 1000.0
    max_model_mb: Annotated[float, Field(gt=0)] = 500.0


class Tracking(Section):
    """Where MLflow writes; null means `mlflow.db` and `mlruns/` at the root."""

    uri: str | None = None
    experiment: str = "frostline"
    # Seconds that a server which is away in the middle of a stage is waited for.
    patience_s: Annotated[float, Field(ge=0)] = 300.0


def _check_store(given: str) -> str:
    if not re.fullmatch(r"/[^\0]*|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#@\0]*)?", given):
        raise ValueError("neither null, nor a folder as /shared/folder, nor s3://BUCKET or s3://BUCKET/PREFIX")
    return given


def _check_address(given: str) -> str:
    host, _, port = given.rpartition(":")
    if given != "auto" and not (host and "/" not in host and port.isdigit()):
        raise ValueError("not auto, nor host:port of a Ray that this machine is a node of")
    return given


def _check_gpus(given: Any) -> Any:
    if given not in (0, 1) or isinstance(given, bool):
        raise ValueError(
            "a worker has one GPU for itself, or none: several on one would share its memory without a limit"
        )
    return given


class Scale(Section):
    """Where the stages' work runs, and what workers elsewhere read; it changes nothing in what comes out. See docs/scale.md."""

    # local: in processes of this machine; ray: as tasks and actors of Ray (the extra of that name).
    engine: Literal["local", "ray"] = "local"
    # With ray: one that runs already, as host:port or auto; null starts one on this machine, for the stage.
    address: Annotated[str, AfterValidator(_check_address)] | None = None
    # With ray: so many at a time, of any stage; `tune.workers` are those of engine local.
    workers: Positive = 2
    # Of each worker: cores that Ray reserves and its libraries compute with; null reserves one, and limits nothing.
    cpus: Positive | None = None
    # Of each worker that computes with the base.
    gpus: Annotated[int, BeforeValidator(_check_gpus)] = 0
    # A folder that machines share, or s3://BUCKET/PREFIX: `tune` puts there what `frostline worker` takes where its folder has no data.
    store: Annotated[str, AfterValidator(_check_store)] | None = None
    # What workers of one machine took from there, in GB; it lies where FROSTLINE_CACHE says.
    cache_gb: Annotated[float, Field(gt=0)] = 50.0


class Params(Section):
    """All of `params.yaml`."""

    seed: Annotated[int, Field(ge=0)]
    paths: Paths
    fetch: Fetch
    base: Base
    prepare: Prepare
    augment: Augment
    extract: Extract
    storage: Storage = Storage()
    tune: Tune
    refit: Refit
    evaluate: Evaluate
    register_: Annotated[Register, Field(alias="register")]
    promote: Promote
    tracking: Tracking
    scale: Scale = Scale()

    @property
    def num_workers(self) -> int:
        """Processes that try trials at a time."""
        return self.scale.workers if self.scale.engine == "ray" else self.tune.workers

    def with_depths(self, first: int, last: int) -> "Params":
        """These params with the depths of the search in numbers."""
        space = self.tune.space.model_copy(update={"unfrozen_blocks": (first, last)})
        return self.model_copy(update={"tune": self.tune.model_copy(update={"space": space})})


def load_params(path: Path = Path("params.yaml")) -> Params:
    """The checked params.

    Raises Refused with every problem at once: what was given, what is allowed, the nearest right word.
    """
    return parse_params(load_document(path), str(path))


def load_document(path: Path = Path("params.yaml")) -> Any:
    """What the file says, unchecked; raises Refused where it is missing or no YAML."""
    try:
        # The same parser and YAML version as DVC's: 1e-4 is a number, `no` a word, a key twice an error.
        return YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise Refused(f"{path} is missing. Run this at the root of a Frostline project.") from None
    except MarkedYAMLError as error:
        raise Refused(f"{path} is not YAML: {error}") from None


def parse_document(text: str) -> Any:
    """What a text says by the same parser as `load_document`."""
    return YAML(typ="safe", pure=True).load(text)


def parse_params(document: Any, name: str = "params.yaml") -> Params:
    """The checked params of a parsed document; raises as `load_params`."""
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        raise Refused(list_problems(name, [_describe(problem) for problem in error.errors()])) from None


def schema_problems(document: Any) -> list[str]:
    """What is wrong with a parsed document by the schema alone, one line each; empty where nothing is."""
    try:
        Params.model_validate(document)
    except ValidationError as error:
        return [_describe(problem) for problem in error.errors()]
    return []


def defaults(section: type[Section] = Params) -> dict[str, Any]:
    """The default of every key that params.yaml may leave out, by section: what `make deps` writes for DVC to compare."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            if inner := defaults(kind):
                found[field.alias or name] = inner
        elif not field.is_required():
            found[field.alias or name] = field.get_default(call_default_factory=True)
    return found


def parse_section(document: Any, name: str, kind: type[SectionKind]) -> SectionKind | None:
    """One section of a parsed document, or None where it is missing or wrong."""
    try:
        return kind.model_validate(document[name])
    except (ValidationError, KeyError, TypeError):
        return None


def list_problems(name: str, problems: list[str]) -> str:
    """A refusal's text: how many problems `name` has, and each on a line of its own."""
    return f"{name} has {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(problems)


def load_lock(path: Path = Path("dvc.lock")) -> dict[str, str]:
    """The md5 of every output that `dvc.lock` names, by path; empty where there is no lock yet."""
    return {out["path"]: out["md5"] for _, out in _locked_outs(path) if "md5" in out}


def load_writers(path: Path = Path("dvc.lock")) -> dict[str, str]:
    """The stage of every output that `dvc.lock` names, by the output's path."""
    return {out["path"]: stage for stage, out in _locked_outs(path)}


def _locked_outs(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        return []
    # DVC's own file, of which names and digests are read: as text, and by libyaml, much sooner than by `load_document`.
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), loader)
    except yaml.YAMLError as error:
        raise Refused(
            f"{path} is not YAML: {' '.join(str(error).split())}. After a merge keep one side of it, then run `dvc repro`."
        ) from None
    stages = (document or {}).get("stages") or {}
    return [(name, out) for name, stage in stages.items() for out in stage.get("outs", [])]


# Parts of pydantic's places that are no keys.
TAGS = ("tuple", "number", "word", "limits")
# Keys that have another name since; a params.yaml of before is told where its value belongs.
MOVED = {
    "extract.budget_gb": "storage.budget_gb",
    "refit.seeds": "refit.folds",
    "refit.keep": "refit.combine",
}


def _describe(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"] if part not in TAGS)
    given = problem["input"]
    match problem["type"]:
        case "extra_forbidden" if place in MOVED:
            return f"{place}: is {MOVED[place]} now; given was {given!r}"
        case "extra_forbidden":
            allowed = _keys_at(problem["loc"][:-1])
            return f"{place}: unknown key{_hint(str(problem['loc'][-1]), allowed)}"
        case "missing":
            return f"{place}: missing"
        case "literal_error":
            allowed = [word.strip().strip("'") for word in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
            return f"{place}: given was {given!r}{_hint(str(given), allowed)}"
        case _:
            return f"{place}: {problem['msg'].removeprefix('Value error, ')}; given was {given!r}"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Params
    for part in location:
        if part == "limits":
            model = Deepest
        for key, field in model.model_fields.items():
            kind = field.annotation
            if part in (key, field.alias) and isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    return [field.alias or key for key, field in model.model_fields.items()]


def _hint(word: str, allowed: list[str]) -> str:
    return f"{nearest(word, allowed)}; allowed: {', '.join(allowed)}"
