"""Greedy farthest point within strata, the examples chosen in earlier strata counting too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

TIE = 1e-12  # squared distances that differ by less, relative to the largest squared norm, are equal


@dataclass(frozen=True)
class Spread:
    """(n,) indices in order of choice, and the distance of each to the nearest chosen before it, infinity at first."""

    indices: np.ndarray
    distances: np.ndarray


def spread_over(
    features: np.ndarray, strata: np.ndarray, counts: Iterable[tuple[int, int]],
    distance: Literal["l2", "cosine"] = "l2",
) -> Spread:  # fmt: skip
    """Choose from one stratum after the other, each time the example farthest from all chosen so far.

    The first of all is the one of the first stratum with the largest feature norm [ours]; of equally far examples the
    lowest index wins. With one stratum this is Gonzalez' greedy k-center.

    Args:
        features: (m, d) finite.
        strata: (m,) stratum of each example.
        counts: (stratum, how many) in the order in which strata are taken; none above the stratum's size.
        distance: "cosine" is the l2 distance of the features scaled to unit length.
    """
    points = np.asarray(features, dtype=np.float64)
    squares = np.einsum("ij,ij->i", points, points)
    first_pick = squares
    if distance == "cosine":
        points = points / np.sqrt(np.where(squares > 0, squares, 1.0))[:, None]
        squares = np.einsum("ij,ij->i", points, points)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0.0)
    tie = TIE * float(squares.max(initial=0.0))
    apart[apart <= tie] = 0.0
    nearest = np.full(len(points), np.inf)
    chosen: list[int] = []
    distances: list[float] = []
    for stratum, count in counts:
        open_to = strata == stratum
        for _ in range(count):
            far = np.where(open_to, nearest if chosen else first_pick, -np.inf)
            best = int(np.argmax(far >= far.max() - (tie if chosen else TIE * float(first_pick.max()))))
            distances.append(float(np.sqrt(nearest[best])) if chosen else np.inf)
            chosen.append(best)
            open_to[best] = False
            nearest = np.minimum(nearest, apart[best])
    return Spread(np.array(chosen, dtype=np.int64), np.array(distances))
