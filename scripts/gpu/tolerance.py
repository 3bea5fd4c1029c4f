"""How far two computations of the same thing may be apart for no other reason than rounding.

Units. bf16 keeps 8 bits of a number, so rounding to nearest is off by at most u = 2^-8 of it; fp32 keeps 24, u = 2^-24.

By theory (`noise`). A token's logit passes through about ROUNDINGS roundings in each of L layers. They are independent, so the
relative error of the last hidden state grows with the root of their number (Higham and Mary 2019, SIAM J. Sci. Comput. 41, for sums
of such errors): u sqrt(ROUNDINGS L), and in fp32, where the sums of a product are rounded too and not its inputs alone, times the root
of its length d. Logits of the models here have a spread of 1 (`right.sharp`), so that is also the error of a logit, and that of a
log-probability; over an answer of n tokens it grows with sqrt(n). Four times that is exceeded once in 16,000 draws of a bell curve.

By measurement (`against`). Theory forgets what a layer amplifies. So where it can be had, the bound is the error that the same
arithmetic makes in the plain, padded layout against fp32: another order of the same roundings has an error of the same size. Two root
mean squares over m independent numbers each have a ratio whose square is F-distributed with m and m degrees of freedom; with m = 12,
the fewest that are compared here, it stays below 7.0 with a probability of 99.9 %, and its root below 2.65: SPREAD. The theory's
figure for one rounding is added, as a floor for errors that happen to be 0.
"""

import math
from collections.abc import Sequence

UNIT = {"bf16": 2.0**-8, "fp32": 2.0**-24}
ROUNDINGS = 10
"""Two norms, q, k, v, rotation, attention's sums and its output, gate and up and their product, down, the sum: those in a row."""
SPREAD = 2.65
SIGMAS = 4


def noise(precision: str, layers: int, width: int, tokens: float = 1) -> float:
    """Return the bound by theory on a log-probability of so many tokens, in nats."""
    inside = width if precision == "fp32" else 1
    return SIGMAS * UNIT[precision] * math.sqrt(ROUNDINGS * layers * inside * tokens)


def against(plain_error: float, precision: str, size: float = 1) -> float:
    """Return the bound by measurement: what the plain layout was off by in the same arithmetic; `size` is the number's own."""
    return SPREAD * plain_error + UNIT[precision] * size


def rms(numbers: Sequence[float]) -> float:
    """Return the root mean square."""
    return math.sqrt(sum(n * n for n in numbers) / len(numbers))


def apart(some: Sequence[float], others: Sequence[float]) -> float:
    """Return the root mean square of differences."""
    return rms([a - b for a, b in zip(some, others, strict=True)])
