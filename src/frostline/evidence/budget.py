"""What a test split has left to say: one significance, spent over all comparisons on it, however the next challenger is chosen.

A verdict tells one bit, whether the comparison passed. Who chooses the next challenger by the bits so far has at most C(k - 1, r)
different ones for comparison k after r that passed; each is judged at

    significance * w(k) * v(r) / C(k - 1, r),    with the sums of w over k = 1, 2, ... and of v over r = 0, ..., k - 1 equal to 1,

so that any false promotion among all has at most the probability `significance` (a union bound). As after Karlas et al.,
"Building Continuous Integration Services for Machine Learning", KDD 2020, and ease.ml/ci, MLSys 2019, with a budget that
never ends in the place of a number of uses. Numbers that are shown beside the bit tell more; docs/promotion.md says how much.
"""

import math
from dataclasses import dataclass

FIRST = 0.6  # of the budget, for the first comparison; the rest falls with the power -1.5 of its number
REFUSED = 0.75  # of each comparison's part, for the case that none has passed before; the rest falls with the power -2 of how many
_ZETA = 2.6123753486854883  # sum of k ** -1.5


@dataclass(frozen=True)
class Budget:
    """uses: comparisons that were judged on a test split before; passed: how many of them passed."""

    uses: int = 0
    passed: int = 0

    def level(self, significance: float) -> float:
        """The significance that the next comparison is judged at."""
        if self.passed:
            part = (1 - REFUSED) / self.passed**2 / sum(number**-2 for number in range(1, self.uses + 1))
        else:
            part = REFUSED if self.uses else 1.0
        return significance * _part(self.uses + 1) * part / math.comb(self.uses, self.passed)

    @property
    def left(self) -> float:
        """Share of the budget that is left for all comparisons to come, the next one included."""
        return 1 - sum(_part(number) for number in range(1, self.uses + 1))

    def after(self, passed: bool) -> "Budget":
        """What is left after one more comparison."""
        return Budget(self.uses + 1, self.passed + passed)

    def describe(self, significance: float) -> str:
        """What is left, and how to refill it."""
        comparisons = "1 comparison" if self.uses == 1 else f"{self.uses} comparisons"
        return (
            f"{self.left:.0%} of this test split's budget is left after {comparisons}, {self.passed} passed: the next challenger "
            f"is judged at p < {self.level(significance):.2g}, all together at promote.significance = {significance:g}. "
            "Test images that no comparison has seen refill it (docs/promotion.md)."
        )


def _part(number: int) -> float:
    return FIRST if number == 1 else (1 - FIRST) * number**-1.5 / (_ZETA - 1)
