"""The final training: the best trials and the linear heads cross-fitted, the best mixture of them joined to one model."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from frostline.arrays import ImageSplit
from frostline.bases.cuts import find_means
from frostline.bases.features import PLAIN
from frostline.devices import keras, ops
from frostline.errors import Refused
from frostline.evidence.calibration import apply_temperature, fit_temperature
from frostline.evidence.comparison import paired_difference, wilson_interval
from frostline.evidence.predictions import BASELINES, FAMILIARITY, PROBABILITIES
from frostline.evidence.refits import Candidate, RefitRecord
from frostline.evidence.trials import SearchRecord, TrialRecord
from frostline.files import replacing, sha256_of
from frostline.hparams import Hparams
from frostline.params import Params
from frostline.scale.local import HERE
from frostline.scale.work import Engine, Work
from frostline.seeding import derive_seed
from frostline.training.bench import Bench, fit_heads
from frostline.training.data import FeatureRows, draw_folds, load_features
from frostline.training.familiarity import MAX_AXES, Familiarity, fit_familiarity
from frostline.training.fit import CURVES
from frostline.training.linear import Head, describe_head
from frostline.training.model import Members, build_baselines, build_model, save_model
from frostline.training.tail import HeadStart

# Largest difference of a probability between the joined model and prefix + tail; the features between are float16.
JOIN_TOLERANCE = 0.02
# Largest difference of a familiarity: it is steep where many training images are as far, and says less than a probability.
FAMILIARITY_TOLERANCE = 0.1
PART_OF_FILE = 0.08  # of the base's weights, that may be spent on what tells how familiar an image is
BARE, EVERY_CUT = "bare head", "head on every cut"
SHARES = np.linspace(0, 1, 11)  # of the tails in a mixture, that are tried
# Standard errors of log loss that the mirror image, and more of the tails, may seem to cost out of fold.
MIRROR_ERRORS, TAILS_ERRORS = 1.0, 0.25
Floats = NDArray[np.float64]
Trained = tuple[list[NDArray[Any]], dict[str, list[float]]]  # a tail's parameters, and its curves


@dataclass(frozen=True, eq=False)
class CrossFit:
    """One way to answer, with out-of-fold probabilities of every image.

    plain, mirror: float64 (num_images, num_classes), for the image and for its mirror image (None where that is not
    stored), by the network that has not seen it; trial: None for a linear head; tails: parameters of each fold's tail.
    """

    name: str
    trial: TrialRecord | None
    plain: Floats = field(repr=False)
    mirror: Floats | None = field(repr=False)
    tails: list[list[NDArray[Any]]] = field(repr=False)
    curves: dict[str, list[float]] = field(repr=False)

    def answers(self, mirrored: bool) -> Floats:
        """The probabilities, the mean with the mirror image's where asked."""
        return (self.plain + self.mirror) / 2 if mirrored and self.mirror is not None else self.plain


def cross_fit_head(bench: Bench, sees: str, name: str, rows: NDArray[np.intp], folds: NDArray[np.int64]) -> CrossFit:
    """The linear heads of the folds, which `bench.heads` holds already, on every image."""
    data, found = bench.data(0, sees), bench.heads[sees]
    views = [data.views[0], data.mirror]
    answers: list[Floats | None] = []
    for view in views:
        if view is None:
            answers.append(None)
            continue
        answer = np.empty((len(rows), bench.num_classes))
        for fold, (kernel, bias) in enumerate(found.heads):
            own = np.flatnonzero(folds == fold)
            answer[own] = softmax(np.asarray(view[rows[own]], np.float64) @ kernel + bias, axis=1)
        answers.append(answer)
    plain, mirror = answers
    assert plain is not None
    return CrossFit(name, None, plain, mirror, [], {})


def cross_fit_trial(
    bench: Bench,
    trial: TrialRecord,
    rows: NDArray[np.intp],
    folds: NDArray[np.int64],
    work: Path,
    engine: Engine = HERE,
) -> CrossFit:
    """The trial's tail trained once for each fold on all other images, from that fold's linear head, to the last epoch.

    work: where each fold is kept once it is fitted, so that a killed refit repeats none; engine: where they are trained.
    FloatingPointError where a loss is not finite.
    """
    files = [work / f"trial-{trial.number:04d}-fold-{fold:02d}.npz" for fold in range(int(folds.max()) + 1)]
    tasks = [(trial, fold, rows, folds, file) for fold, file in enumerate(files) if not file.is_file()]
    facts = (bench.params, bench.num_classes, bench.heads)
    deque(engine.map(Work(_train_fold, Bench, facts, keep=_keep_fold, here=lambda: bench, on_gpu=True), tasks), 0)
    hparams = trial.hparams
    trainer, data = bench.trainer(hparams), bench.data(hparams.unfrozen_blocks, bench.sees(hparams))
    plain = np.empty((len(rows), bench.num_classes))
    mirror = None if data.mirror is None else np.empty_like(plain)
    tails: list[list[NDArray[Any]]] = []
    first: dict[str, list[float]] = {}
    for fold, file in enumerate(files):
        own = np.flatnonzero(folds == fold)
        params, curves = load_tail(file)
        first = first or curves
        head = bench.start_head(hparams, _fold_seed(bench, trial, fold), fold)
        state = trainer.with_params(trainer.start(head, 0), params)
        plain[own] = softmax(trainer.predict(state, data.views[0], rows[own]).astype(np.float64), axis=1)
        if mirror is not None and data.mirror is not None:
            mirror[own] = softmax(trainer.predict(state, data.mirror, rows[own]).astype(np.float64), axis=1)
        tails.append(params)
    return CrossFit(f"trial {trial.number}", trial, plain, mirror, tails, first)


def _fold_seed(bench: Bench, trial: TrialRecord, fold: int) -> int:
    return derive_seed(bench.params.seed, "refit", trial.number, fold)


def _train_fold(
    bench: Bench, trial: TrialRecord, fold: int, rows: NDArray[np.intp], folds: NDArray[np.int64], file: Path
) -> Iterator[Trained]:
    own, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
    seed = _fold_seed(bench, trial, fold)
    head = bench.start_head(trial.hparams, seed, fold)
    yield train_tail(bench, trial.hparams, seed, (rows[others], rows[own]), head)


def _keep_fold(trained: Trained, *task: Any) -> None:
    save_tail(trained, task[-1])


def train_tail(
    bench: Bench, hparams: Hparams, seed: int, rows: tuple[NDArray[np.intp], NDArray[np.intp]], head: HeadStart
) -> Trained:
    """A tail's parameters after its last epoch on the given (trained, held out) rows, and its curves."""
    fitted = bench.train(hparams, seed, rows=rows, head=head)
    return [np.asarray(ops.convert_to_numpy(value)) for value in fitted.state.params], fitted.curves


def save_tail(trained: Trained, file: Path) -> None:
    """Writes what `train_tail` gave."""
    params, curves = trained
    with replacing(file) as temporary:
        np.savez(temporary, *params, **curves)  # type: ignore[arg-type]


def load_tail(file: Path) -> Trained:
    """What `save_tail` wrote."""
    with np.load(file, allow_pickle=False) as opened:
        params = [opened[f"arr_{index}"] for index in range(len(opened.files) - len(CURVES))]
        return params, {name: opened[name].tolist() for name in CURVES}


@dataclass(frozen=True)
class Choice:
    """What the model will answer with: one candidate's tails, linear heads, or both, by their out-of-fold log loss.

    tails, heads: None where they have no share; sees: what the heads see; share: of the tails; probabilities: float64
    (num_images, num_classes), out of fold, before the temperature.
    """

    tails: CrossFit | None
    heads: CrossFit | None
    sees: str
    share: float
    mirrored: bool
    temperature: float
    probabilities: Floats = field(repr=False)


def choose(
    labels: NDArray[np.int32], heads: Mapping[str, CrossFit], trials: Sequence[CrossFit], mirrored: Sequence[bool]
) -> Choice:
    """The mixture of one trial's tails and the better linear head, by out-of-fold log loss.

    The trial is that of the mixture with the lowest. The mirror image is asked unless that costs more than one standard error
    (paired, over images). Of the mixtures within a quarter of one of the best the largest share of the tails is taken: out of fold one tail
    answers alone, and the mean of all folds' is better (docs/decisions/0014-cross-fitting.md).

    heads: by what they see; mirrored: which of with and without the mirror image may be chosen.
    """
    found: list[_Mixture] = []
    every: Sequence[CrossFit | None] = trials or [None]
    for with_mirror in mirrored:

        def loss_of(each: CrossFit, with_mirror: bool = with_mirror) -> float:
            return log_loss(labels, each.answers(with_mirror))

        sees = min(heads, key=lambda kind: loss_of(heads[kind]), default="last")
        head = heads.get(sees)
        for trial in every:
            # Mixed first, judged then: sure tails may add more to a head than to themselves.
            for share in (0.0,) if trial is None else (1.0,) if head is None else SHARES:
                parts = [(1 - share, head), (share, trial)]
                mixed = np.sum([part * each.answers(with_mirror) for part, each in parts if each is not None], axis=0)
                losses = losses_of(labels, mixed)
                found.append(
                    _Mixture(float(losses.mean()), with_mirror, float(share), sees, head, trial, mixed, losses)
                )
    best = min(found, key=lambda each: each.loss)
    trial = min((each for each in found if each.share > 0), key=lambda each: each.loss, default=best).trial
    its = [each for each in found if each.trial is trial]
    asked = min((each for each in its if each.mirrored), key=lambda each: each.loss, default=best)
    if not _is_close(asked, best, MIRROR_ERRORS):
        asked = best
    alike = [each for each in its if each.mirrored == asked.mirrored]
    chosen = max((each for each in alike if _is_close(each, asked, TAILS_ERRORS)), key=lambda each: each.share)
    # A linear head's L2 is chosen by log loss already: a temperature only harms
    # (docs/decisions/0013-linear-heads.md).
    temperature = fit_temperature(labels, chosen.mixed) if chosen.share > 0 else 1.0
    tails, heads_used = chosen.trial if chosen.share > 0 else None, chosen.head if chosen.share < 1 else None
    return Choice(tails, heads_used, chosen.sees, chosen.share, chosen.mirrored, temperature, chosen.mixed)


class _Mixture(NamedTuple):
    """Of a trial's tails and a head: out-of-fold log loss, in all and of each image, and what makes it."""

    loss: float
    mirrored: bool
    share: float
    sees: str
    head: CrossFit | None
    trial: CrossFit | None
    mixed: Floats
    losses: Floats


def _is_close(one: _Mixture, best: _Mixture, errors: float) -> bool:
    """Is its loss above the best one's by no more than so many standard errors?"""
    above = one.losses - best.losses
    return bool(above.mean() <= errors * above.std(ddof=1) / np.sqrt(len(above)))


def losses_of(labels: NDArray[np.integer[Any]], probabilities: Floats) -> Floats:
    """Cross-entropy of each image in nats."""
    return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)))


def log_loss(labels: NDArray[np.integer[Any]], probabilities: Floats) -> float:
    """Mean cross-entropy in nats."""
    return float(losses_of(labels, probabilities).mean())


def make_members(bench: Bench, choice: Choice, combine: str, rows: NDArray[np.intp], work: Path) -> Members:
    """The networks that the model averages: one of each fold, or one with the mean of their weights, or one trained on all.

    The mean of the weights is that of networks that began at nearly the same place (Wortsman et al., ICML 2022). Of the
    linear heads it is in any case the one of all images: it answers as well as the mean of five
    (docs/decisions/0013-linear-heads.md).
    """
    heads: Sequence[Head] = [] if choice.heads is None else [bench.heads[choice.sees].whole]
    if choice.tails is None or choice.tails.trial is None:
        return Members(None, [], None, heads, choice.sees, 0.0)
    trial, tails = choice.tails.trial, choice.tails.tails
    # The standardisation is that of all rows, the same for every fold.
    head = bench.start_head(trial.hparams, 0)
    if combine == "average_weights":
        tails = [[np.mean(values, axis=0) for values in zip(*tails, strict=True)]]
    elif combine == "single":
        seed = derive_seed(bench.params.seed, "refit", trial.number, "single")
        file = work / f"trial-{trial.number:04d}-single.npz"
        if not file.is_file():
            save_tail(train_tail(bench, trial.hparams, seed, (rows, rows[:1]), head), file)
        tails = [load_tail(file)[0]]
    return Members(bench.trainer(trial.hparams), tails, head, heads, choice.sees, choice.share)


def compare_with_parts(
    bench: Bench,
    members: Members,
    answers: NDArray[np.float32],
    rows: NDArray[np.intp],
    *,
    temperature: float,
    mirrored: bool,
) -> float:
    """The largest difference of a probability between the joined model's answers and its parts' on stored features of `rows`.

    answers: float32 (num_rows, num_classes). Refused where it is above JOIN_TOLERANCE.
    """
    parts = np.mean(
        [answer_of_parts(bench, members, rows, mirror) for mirror in ([False, True] if mirrored else [False])], axis=0
    )
    scaled = softmax(np.log(np.maximum(parts, 1e-12)) / temperature, axis=1)
    difference = float(np.abs(answers - scaled).max())
    if difference > JOIN_TOLERANCE:
        raise Refused(
            f"The whole model and the features that it was trained on differ by {difference:.2g} in a probability; {JOIN_TOLERANCE} "
            f"is allowed. Set extract.precision to float32 (it is {bench.params.extract.precision}), or delete "
            "data/features, and run `dvc repro`."
        )
    return difference


def answer_of_parts(bench: Bench, members: Members, rows: NDArray[np.intp], mirror: bool) -> Floats:
    """What a model of these members answers, from stored features: probabilities (num_rows, num_classes) before the temperature.

    mirror: for the mirror images.
    """
    answer = np.zeros((len(rows), bench.num_classes))
    if members.share < 1:
        view = _view(bench, 0, members.sees, mirror)
        columns = np.asarray(view[rows], np.float64)
        answers = [softmax(columns @ kernel + bias, axis=1) for kernel, bias in members.linear]
        answer += (1 - members.share) * np.mean(answers, axis=0)
    if members.trainer is not None and members.head is not None:
        tail = members.trainer.tail
        view = _view(bench, tail.depth, tail.sees, mirror)
        start = members.trainer.start(members.head, 0)
        logits = [
            members.trainer.predict(members.trainer.with_params(start, params), view, rows) for params in members.tails
        ]
        answer += members.share * np.mean([softmax(each.astype(np.float64), axis=1) for each in logits], axis=0)
    return answer


def _view(bench: Bench, depth: int, sees: str, mirror: bool) -> Any:
    data = bench.data(depth, sees)
    return data.mirror if mirror else data.views[0]


def _predict(model: keras.Model, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Every output by its name."""
    answers = model.predict_on_batch(images)
    named = answers if isinstance(answers, dict) else {PROBABILITIES: answers}
    return {name: np.asarray(answer, np.float32) for name, answer in named.items()}


class Refitter:
    """The final training of a project: images of `splits`, in folds; folds that are fitted are kept in `work`.

    rows: of the images that are trained on, int64 (num_images,): those of the splits that are no near duplicate of a test image;
    labels: int32 (num_images,). engine: where the folds are trained.
    """

    def __init__(
        self,
        params: Params,
        class_names: Sequence[str],
        splits: Sequence[ImageSplit],
        work: Path,
        engine: Engine = HERE,
    ) -> None:
        self.params, self.work, self.engine = params, work, engine
        self.bench = Bench(params, len(class_names), {})
        labels, found = np.concatenate([split.labels for split in splits]), self.bench.rows
        self.rows = found.both[found.both < len(labels)]
        self.labels = labels[self.rows]
        self.folds = draw_folds(
            self.labels, found.groups[self.rows], params.refit.folds, derive_seed(params.seed, "refit")
        )
        self.bench.heads = fit_heads(self.bench, ("last", "all"), self.rows, self.folds)

    def run(
        self, search: SearchRecord, candidates: Sequence[TrialRecord], out: Path, images: NDArray[np.uint8]
    ) -> tuple[RefitRecord, Floats]:
        """Writes `final.keras` and `baselines.keras` into `out`; the record, and the final model's out-of-fold probabilities,
        float64 (num_images, num_classes).

        images: uint8, the first of `val`, on which the joined model is compared with its parts.
        """
        heads = {
            sees: cross_fit_head(self.bench, sees, name, self.rows, self.folds)
            for sees, name in (("last", BARE), ("all", EVERY_CUT))
            if sees in self.bench.heads
        }
        fits, diverged = [], []
        for trial in candidates:
            try:
                fits.append(cross_fit_trial(self.bench, trial, self.rows, self.folds, self.work, self.engine))
            except FloatingPointError:  # it was near the edge of what its rate bears; the others go on
                diverged.append(trial.number)
        bare = heads.get("last") or cross_fit_trial(
            self.bench, search.trial(search.baseline), self.rows, self.folds, self.work, self.engine
        )
        if not heads:
            fits = [bare, *fits]
        choice = choose(self.labels, heads, fits, self._mirrored(bare))
        difference, sha256, strange = self._save_final(choice, out / "final.keras", images)
        mirrored = [choice.mirrored]
        singles = [choose(self.labels, {sees: fit}, [], mirrored) for sees, fit in heads.items()]
        singles = singles or [choose(self.labels, {}, [bare], mirrored)]
        files = {"final": sha256, "baselines": self._save_baselines(singles, out / "baselines.keras", images)}
        scaled = apply_temperature(choice.probabilities, choice.temperature)
        trial = choice.tails.trial if choice.tails and choice.tails.trial else search.trial(search.baseline)
        record = RefitRecord(
            study=search.study,
            trial=trial.number,
            trial_run=trial.run_id,
            hparams=trial.hparams,
            folds=self.params.refit.folds,
            combine=self.params.refit.combine,
            num_images=len(self.labels),
            share=choice.share,
            mirrored=choice.mirrored,
            temperature=choice.temperature,
            accuracy=float((scaled.argmax(axis=1) == self.labels).mean()),
            log_loss=log_loss(self.labels, scaled),
            candidates=tuple(
                self._judge(fit, bare, choice.mirrored) for fit in dict.fromkeys([*heads.values(), *fits])
            ),
            diverged=tuple(diverged),
            curves=choice.tails.curves if choice.tails else {},
            strengths={sees: describe_head(found) for sees, found in self.bench.heads.items()},
            sha256=files,
            join_difference=difference,
            familiarity_difference=strange,
        )
        return record, scaled

    def _mirrored(self, fit: CrossFit) -> list[bool]:
        """With and without the mirror image, as params allow; never where no flip was among the transforms."""
        asked = self.params.refit.mirrored
        return [False] if fit.mirror is None or asked == "no" else [True] if asked == "yes" else [False, True]

    def _save_baselines(self, choices: Sequence[Choice], path: Path, images: NDArray[np.uint8]) -> str:
        """Writes the model that answers as each of BASELINES does; its sha256."""
        named = dict(zip(BASELINES, choices, strict=False))  # of a head that is no linear one there is but the bare one
        members = {name: self._make_members(choice) for name, choice in named.items()}
        model = build_baselines(
            self.bench.base,
            {name: (each, named[name].temperature) for name, each in members.items()},
            pooling=self.params.tune.pooling,
            mirrored=choices[0].mirrored,
        )
        answers = _predict(model, np.asarray(images))
        for name, each in members.items():
            self._compare(named[name], each, answers[name])
        save_model(model, path)
        return sha256_of(path)

    def _save_final(self, choice: Choice, path: Path, images: NDArray[np.uint8]) -> tuple[float, str, float | None]:
        """The same of the model that also tells how familiar an image is, and the largest difference of that.

        None where it does not tell it, because the base's features of these images vary no more than they are rounded: a base
        that knows nothing.
        """
        members = self._make_members(choice)
        columns = self._means(members.reach)
        room = int(PART_OF_FILE * self.bench.base.model.count_params() / columns.shape[1])
        familiarity = fit_familiarity(columns[self.rows], self.folds, min(MAX_AXES, room))
        model = self._build(choice, members, familiarity)
        answers = _predict(model, np.asarray(images))
        known = familiarity.of(columns[self._first_of_val(len(images))])
        strange = float(np.abs(answers[FAMILIARITY][:, 0] - known).max())
        is_told = strange <= FAMILIARITY_TOLERANCE
        if not is_told:
            model = self._build(choice, members)
            answers = _predict(model, np.asarray(images))
        difference = self._compare(choice, members, answers[PROBABILITIES])
        save_model(model, path)
        return difference, sha256_of(path), strange if is_told else None

    def _make_members(self, choice: Choice) -> Members:
        return make_members(self.bench, choice, self.params.refit.combine, self.rows, self.work)

    def _build(self, choice: Choice, members: Members, familiarity: Familiarity | None = None) -> keras.Model:
        return build_model(
            self.bench.base,
            members,
            pooling=self.params.tune.pooling,
            temperature=choice.temperature,
            mirrored=choice.mirrored,
            familiarity=familiarity,
        )

    def _compare(self, choice: Choice, members: Members, answers: NDArray[np.float32]) -> float:
        """The largest difference of a model's answers to the first images of `val` from its parts'."""
        rows = self._first_of_val(len(answers))
        answer = {"temperature": choice.temperature, "mirrored": choice.mirrored}
        return compare_with_parts(self.bench, members, answers, rows, **answer)  # type: ignore[arg-type]

    def _first_of_val(self, number: int) -> NDArray[np.intp]:
        """The rows of the first images of `val`."""
        return np.arange(number) + self.bench.rows.num_train

    def _means(self, depth: int) -> FeatureRows:
        """Of every image that there are features of, the means of the last pooled cut up to a depth's."""
        bench = self.bench
        folder = Path(self.params.paths.features)
        return load_features(folder, 0, find_means(bench.base, depth), lambda: bench.base)[PLAIN]

    def _judge(self, fit: CrossFit, bare: CrossFit, mirrored: bool) -> Candidate:
        ours, theirs = fit.answers(mirrored), bare.answers(mirrored)
        right = int((ours.argmax(axis=1) == self.labels).sum())
        accuracy = wilson_interval(right, len(self.labels))
        gain = paired_difference(self.labels, ours, theirs)
        number = fit.trial.number if fit.trial else None
        loss = log_loss(self.labels, ours)
        return Candidate(
            fit.name, number, accuracy.value, accuracy.low, accuracy.high, loss, gain.value, gain.low, gain.high
        )
