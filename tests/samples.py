"""Records as the stages write them, small, for tests of whoever reads them."""

from typing import Any

from frostline.evidence.evaluation import Evaluation, Gain
from frostline.evidence.refits import Candidate, RefitRecord
from frostline.evidence.scores import METRICS, Score
from frostline.evidence.trials import SearchRecord, TrialRecord
from frostline.hparams import HPARAMS, Hparams

DRAWN: dict[str, Any] = {
    "unfrozen_blocks": 0,
    "dropout": 0.3,
    "head_learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
    "optimizer": "adam",
    "head_units": 0,
    "head_input": "all",
}


def make_hparams(**drawn: Any) -> Hparams:
    """Hparams of a head-only trial, but for `drawn`."""
    return Hparams.from_record({**DRAWN, **drawn})


def make_trial(number: int = 0, state: str = "COMPLETE", score: float | None = 0.9, **facts: Any) -> TrialRecord:
    """A trial; what names a hyperparameter among `facts` is drawn, the rest are fields of the record."""
    drawn = {name: facts.pop(name) for name in list(facts) if name in HPARAMS}
    curves = {name: [0.5, 0.4] for name in ("loss", "val_loss", "accuracy", "val_accuracy")}
    known = {"val_loss": 0.3, "best_epoch": 1, "epochs": 2, "curves": {} if state == "FAIL" else curves, "seconds": 2.0}
    return TrialRecord(number, make_hparams(**drawn), state, score, **{**known, **facts})  # type: ignore[arg-type]


def make_evaluation(num_images: int = 120, accuracy: float = 0.9) -> Evaluation:
    """An evaluation of which only the accuracy says anything."""
    score = Score(accuracy, accuracy - 0.05, accuracy + 0.05, {})
    numbers = {"log_loss": 0.3, "brier": 0.1, "ece": 0.02}
    return Evaluation(
        num_images=num_images,
        confidence=0.95,
        resamples=100,
        scores=dict.fromkeys(METRICS, score),
        per_class={},
        search_score=accuracy,
        selection_optimism=0.0,
        baseline={"accuracy": score},
        gain=Gain(0.0, 0.0, 0.0, 0, 0, 1.0),
        every_cut=None,
        every_cut_gain=None,
        temperature=1.0,
        calibration={"before": numbers, "after": numbers},
    )


def add_familiarity(network: Any, seen: Any = None) -> Any:
    """The model with a second output, how familiar an image is to one that has seen these, or forty images of noise, 0 to 200."""
    import keras
    import numpy as np

    from frostline.training.familiarity import build_familiarity, fit_familiarity

    cut = next(layer.input for layer in network.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D))
    if seen is None:
        seen = np.random.default_rng(1).integers(0, 200, (40, *network.input_shape[1:]), np.uint8)
    columns = np.asarray(keras.Model(network.input, cut).predict_on_batch(seen)).mean(axis=(1, 2))
    found = fit_familiarity(columns, np.arange(len(seen)) % 5)
    outputs = {"probabilities": network.output, "familiarity": build_familiarity(found, cut)}
    knowing = keras.Model(network.input, outputs)
    knowing.trainable = False
    return knowing


def make_search(*trials: TrialRecord, best: int = 0) -> SearchRecord:
    """A search of these trials."""
    return SearchRecord("feed", best, 2, trials)


def make_refit(trial: int = 0, sha256: str = "f" * 64, **facts: Any) -> RefitRecord:
    """A refit whose tails are those of one trial; hyperparameters among `facts` are drawn, the rest are its fields."""
    drawn = {name: facts.pop(name) for name in list(facts) if name in HPARAMS}
    candidate = Candidate(f"trial {trial}", trial, 0.9, 0.87, 0.93, 0.3, 0.02, 0.0, 0.04)
    known: dict[str, Any] = {
        "study": "feed",
        "trial_run": "",
        "folds": 5,
        "combine": "mean",
        "num_images": 600,
        "share": 0.5,
        "mirrored": False,
        "temperature": 1.0,
        "accuracy": 0.9,
        "log_loss": 0.3,
        "candidates": (candidate,),
        "diverged": (),
        "curves": {name: [0.5, 0.4] for name in ("loss", "val_loss", "accuracy", "val_accuracy")},
        "strengths": {"all": {"strength": 0.1, "edge": None, "log_loss": 0.35, "accuracy": 0.88}},
        "sha256": {"final": sha256, "baselines": "b" * 64},
        "join_difference": 0.001,
    }
    return RefitRecord(trial=trial, hparams=make_hparams(**drawn), **{**known, **facts})
