"""Whether a model in use still meets what it was tested on: three tests that may be looked at after every image.

Each is a bet against the hypothesis that nothing has changed. Its wealth is a nonnegative martingale that begins at 1, so that
it ever reaches 1 / alpha with a probability of at most alpha, however often one looks and whenever one stops (Ville 1939).

* Accuracy: each label pays 1 + lambda (wrong - q), with q the highest share of wrong answers that the test split speaks for;
  several lambdas at once, the mean of their wealths. Source: Waudby-Smith and Ramdas, "Estimating means of bounded random
  variables by betting", JRSS-B 86, 2024.
* Familiarity, shares of the classes: conformal p-values, the rank of an image among the test images and all before it, are
  independent and uniform as long as the order of the images says nothing. Several bets on small ones, the mean of their
  wealths. Source: Vovk, Nouretdinov and Gammerman, "Testing exchangeability on-line", ICML 2003.
"""

import csv
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from frostline.evidence.comparison import wilson_interval
from frostline.evidence.predictions import Predictions
from frostline.files import replacing
from frostline.seeding import derive_seed

# Of false alarms, ever; together one in twenty.
ALPHAS = {"accuracy": 0.03, "familiarity": 0.01, "shares": 0.01}
# Of the interval of the test accuracy whose lower end is held against the model: one standard error to each side.
CONFIDENCE = 0.6827
DROPS = ((0.05, 0.25), (0.1, 0.5), (0.2, 0.25))  # that are betted on, and how much on each
# How often a p-value is below q under the hypothesis, and in truth, that is betted on.
RARER = tuple(
    (q, factor * q) for q, factor in ((0.02, 3), (0.02, 10), (0.05, 3), (0.05, 8), (0.2, 2), (0.2, 3), (0.5, 1.5))
)
RISES = tuple((q, q + more) for q in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7) for more in (0.1, 0.2))


@dataclass(frozen=True)
class Answer:
    """What a model answered to a new image, by the sha256 of its file.

    familiarity: None of a model that tells none; label: "" where nobody gave one; again: was the image met before, without a label?
    """

    sha256: str
    predicted: str
    familiarity: float | None
    label: str = ""
    again: bool = False


@dataclass(frozen=True)
class Reading:
    """A test's state: how many images it has met, its wealth's logarithm to the base of 10 now and at the highest, and from
    which on it raises alarm; what it saw in words."""

    num_images: int
    wealth: float
    highest: float
    limit: float
    seen: str

    @property
    def raised(self) -> bool:
        return self.highest >= self.limit


class _Bet:
    """Some bets on a share of successes that is q under the hypothesis; wealths in natural logarithms."""

    def __init__(self, bets: Sequence[tuple[float, float]], parts: Sequence[float] | None = None) -> None:
        shares = np.array(bets)
        self.q, supposed = shares[:, 0], shares[:, 1]
        # 1 + lambda (success - q), with the lambda that grows fastest where the share is as supposed.
        self.won, self.lost = np.log(supposed / self.q), np.log((1 - supposed) / (1 - self.q))
        self.parts = np.log(np.full(len(bets), 1 / len(bets)) if parts is None else np.asarray(parts))
        self.wealths, self.highest = np.zeros(len(bets)), 0.0

    def pay(self, success: np.ndarray | bool) -> None:
        self.wealths += np.where(success, self.won, self.lost)
        self.highest = max(self.highest, self.wealth)

    @property
    def wealth(self) -> float:
        return float(np.logaddexp.reduce(self.wealths + self.parts))


def weigh(test: Predictions, answers: Iterable[Answer]) -> dict[str, Reading]:
    """The tests that have met any image, by name, after all answers in their order.

    test: the model's answers to the test split. The order must say nothing of the images: see `order`. All is computed anew from the
    first answer on, so that the wealth goes on from one look to the next.
    """
    answers = list(answers)
    fresh = [answer for answer in answers if not answer.again]
    found = {"shares": _weigh_shares(test, fresh)} if fresh else {}
    if test.familiarity is not None and fresh:
        found["familiarity"] = _weigh_familiarity(test.familiarity.tolist(), fresh)
    if labelled := [answer for answer in answers if answer.label]:
        found["accuracy"] = _weigh_accuracy(test, labelled)
    return found


def order(sha256s: Iterable[str]) -> list[str]:
    """Images in an order that says nothing of them: that of names in folders says their class."""
    return sorted(sha256s, key=lambda sha256: derive_seed(0, "monitor", sha256))


def _weigh_accuracy(test: Predictions, answers: Sequence[Answer]) -> Reading:
    held = wilson_interval(int(test.correct.sum()), len(test.correct), CONFIDENCE).low
    q = min(max(1 - held, 1e-3), 0.99)
    bet = _Bet([(q, min(q + drop, (1 + q) / 2)) for drop, _ in DROPS], [part for _, part in DROPS])
    for answer in answers:
        bet.pay(answer.predicted != answer.label)
    right = sum(answer.predicted == answer.label for answer in answers) / len(answers)
    seen = f"{right:.1%} right; the test split speaks for {held:.1%} or more"
    return _read(bet, len(answers), ALPHAS["accuracy"], seen)


def _weigh_familiarity(known: list[float], answers: Sequence[Answer]) -> Reading:
    bet, met = _Bet(RARER), sorted(known)
    for answer in answers:
        assert answer.familiarity is not None
        bet.pay(_p_value(met, answer.familiarity, answer.sha256, "familiarity") <= bet.q)
        insort(met, answer.familiarity)
    values = np.array([answer.familiarity for answer in answers])
    seen = f"median {np.median(values):.2f}, {(values < 0.05).mean():.1%} below 0.05; of the test split {np.median(known):.2f}, "
    return _read(bet, len(answers), ALPHAS["familiarity"], seen + f"{(np.array(known) < 0.05).mean():.1%}")


def _weigh_shares(test: Predictions, answers: Sequence[Answer]) -> Reading:
    """Of each class whether it is answered more often; that of one at most is told."""
    names = test.class_names
    bets = {}
    for place, name in enumerate(names):
        bet, met = _Bet(RISES), sorted((test.predicted != place).astype(float).tolist())
        for answer in answers:
            value = float(answer.predicted != name)
            bet.pay(_p_value(met, value, answer.sha256, name) <= bet.q)
            insort(met, value)
        bets[name] = bet
    name = max(bets, key=lambda each: bets[each].highest)
    now = sum(answer.predicted == name for answer in answers) / len(answers)
    before = float((test.predicted == names.index(name)).mean())
    return _read(
        bets[name], len(answers), ALPHAS["shares"] / len(names), f"{name} {now:.1%}; on the test split {before:.1%}"
    )


def _p_value(met: Sequence[float], value: float, sha256: str, name: str) -> float:
    """The rank of a value among those met, from the least, ties broken by a number drawn for the image."""
    below, upto = bisect_left(met, value), bisect_right(met, value)
    drawn = (derive_seed(0, "monitor", name, sha256) + 0.5) / 2**31
    return (below + drawn * (upto - below + 1)) / (len(met) + 1)


def _read(bet: _Bet, num_images: int, alpha: float, seen: str) -> Reading:
    return Reading(num_images, bet.wealth / math.log(10), bet.highest / math.log(10), -math.log10(alpha), seen)


def save_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Writes CSV, a row for each answer in its order."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Answer)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(answer), "again": "again" * answer.again} for answer in answers)


def load_answers(path: Path) -> list[Answer]:
    """The answers in a file of `save_answers`."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_read_answer(row) for row in csv.DictReader(file)]


def _read_answer(row: Mapping[str, str]) -> Answer:
    familiarity = float(row["familiarity"]) if row["familiarity"] else None
    return Answer(row["sha256"], row["predicted"], familiarity, row["label"], bool(row["again"]))
