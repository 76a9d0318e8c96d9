"""Two models on the same images: paired tests and intervals, and how many images would tell.

`labels` is int (num_images,), `probabilities` float (num_images, num_classes) with rows that sum to 1.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from frostline.evidence.calibration import Floats, Labels


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """A share and its Wilson interval, which holds up near 0 and 1 where the bootstrap collapses.

    >>> few, many = wilson_interval(20, 20), wilson_interval(2000, 2000)
    >>> round(few.low, 3), round(many.low, 3)
    (0.839, 0.998)
    """
    share, z = successes / trials, _quantile((1 + confidence) / 2)
    spread = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = ((share + z * z / (2 * trials) + side * spread) / (1 + z * z / trials) for side in (-1, 1))
    return Interval(share, max(0.0, float(low)), min(1.0, float(high)))


def count_discordant(labels: Labels, ours: Floats, theirs: Floats) -> tuple[int, int]:
    """(images that only `ours` gets right, images that only `theirs` gets right)."""
    right, right_there = ours.argmax(axis=1) == labels, theirs.argmax(axis=1) == labels
    return int((right & ~right_there).sum()), int((~right & right_there).sum())


def mcnemar(wins: int, losses: int) -> float:
    """The exact one-sided p-value of McNemar's test: how likely so many wins or more are if both are equally good.

    >>> round(mcnemar(8, 2), 3), round(mcnemar(16, 4), 3)
    (0.055, 0.006)
    """
    return float(special.bdtrc(wins - 1, wins + losses, 0.5)) if wins else 1.0


def paired_difference(
    labels: Labels, ours: Floats, theirs: Floats, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Our accuracy minus theirs on the same images, with its paired, stratified bootstrap interval."""
    gain = (ours.argmax(axis=1) == labels).astype(np.int8) - (theirs.argmax(axis=1) == labels)
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for label in np.unique(labels):
        # An image counts -1, 0 or +1, so a class's resample is one multinomial draw.
        counts = np.bincount(gain[labels == label] + 1, minlength=3)
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
        total += drawn[:, 2] - drawn[:, 0]
    low, high = np.quantile(total / len(labels), ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(float(gain.mean()), float(low), float(high))


def paired_score_interval(wins: int, losses: int, num_images: int, confidence: float = 0.95) -> Interval:
    """The difference of two paired accuracies with Tango's score interval (Statistics in Medicine 17, 1998).

    Unlike the bootstrap it does not collapse to a point where the two models agree on every image.
    """
    difference = (wins - losses) / num_images
    z = _quantile((1 + confidence) / 2)

    def distance(delta: float) -> float:
        # The maximum-likelihood share of losses under the hypothesis that the true difference is delta.
        a = 2 * num_images
        b = -wins - losses + (2 * num_images - wins + losses) * delta
        c = -losses * delta * (1 - delta)
        share = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = num_images * (2 * share + delta * (1 - delta))
        return float((wins - losses - num_images * delta) / np.sqrt(max(variance, 1e-300)))

    edge = 1 - 1e-9
    low = optimize.brentq(lambda d: distance(d) - z, -edge, difference) if difference > -edge else -1.0
    high = optimize.brentq(lambda d: distance(d) + z, difference, edge) if difference < edge else 1.0
    return Interval(difference, float(low), float(high))


def needed_images(difference: float, discordance: float, *, significance: float, power: float = 0.8) -> int | None:
    """Test images for McNemar's one-sided test to see `difference` with `power`; None if there is nothing to see.

    `discordance` is the share of images that one of the two gets right and the other wrong.
    Source: Connor, Biometrics 43 (1987), with 1/difference added for the exact test.

    >>> [needed_images(gain, 0.05, significance=0.05) for gain in (0.02, 0.01, 0.0)]
    [821, 3190, None]
    """
    if difference <= 0 or discordance <= 0:
        return None
    z_size, z_power = _quantile(1 - significance), _quantile(power)
    spread = z_size * np.sqrt(discordance) + z_power * np.sqrt(max(discordance - difference**2, 0.0))
    return int(np.ceil((spread / difference) ** 2 + 1 / difference))


def _quantile(probability: float) -> float:
    """Of the standard normal distribution. SciPy's `stats` would be loaded for seconds."""
    return float(special.ndtri(probability))
