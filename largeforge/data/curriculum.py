"""The order of a first epoch that begins with what is easy. Sees numbers only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BEGINS_WITH = 0.1  # share of the rows, the easiest, that the first step draws from


def paced_order(difficulty: np.ndarray, *, seed: int) -> np.ndarray:
    """A permutation of the rows in which easy ones come early.

    Competence-based curriculum (Platanios et al. 2019, arXiv:1903.09848, eq. 7, square root): after a share t of the epoch, rows are
    drawn from the easiest ``sqrt(t * (1 - c0^2) + c0^2)`` of all, evenly among those not drawn yet; every row is drawn once.

    Args:
        difficulty: one number a row, higher is harder; rows that are equally hard stand in a random order.
        seed: of the draws.

    Returns:
        int64 rows.
    """
    import numpy as np

    generator = np.random.Generator(np.random.PCG64([seed, 0x5EED]))
    num_rows = len(difficulty)
    by_difficulty = np.lexsort((generator.permutation(num_rows), difficulty))
    draws = generator.random(num_rows)
    pool: list[int] = []
    order = np.empty(num_rows, dtype=np.int64)
    let_in = 0
    for place in range(num_rows):
        share = math.sqrt(place / num_rows * (1 - BEGINS_WITH**2) + BEGINS_WITH**2)
        wanted = max(place + 1, math.ceil(share * num_rows))
        pool.extend(by_difficulty[let_in:wanted].tolist())
        let_in = max(let_in, wanted)
        at = int(draws[place] * len(pool))
        pool[at], pool[-1] = pool[-1], pool[at]
        order[place] = pool.pop()
    order.setflags(write=False)
    return order
