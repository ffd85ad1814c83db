"""TAGCOS: gradient clusters, and a matching pursuit of each cluster's centre (arXiv 2407.15235)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from pursuit.progress import progress
from pursuit.selectors.base import Selector
from pursuit.selectors.selection import Selection
from pursuit.solvers.apportion import floor_shares, largest_remainder, summing_to
from pursuit.solvers.clusters import kmeans
from pursuit.solvers.matching_pursuit import PursuitResult, matching_pursuit
from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, Matrix, RowMatrix, RowView, gathered_dots, on_device

if TYPE_CHECKING:
    from pursuit.engine import Engine
    from pursuit.store.features import Features

AS_PUBLISHED = {"apportionment": "floor"}


class Tagcos(Selector):
    """Few rows that stand for the whole pool: clusters of gradients, each approximated by a few of its members.

    k-means on the averaged gradient features; every cluster gets a share of the budget in proportion to its size;
    inside of a cluster, non-negative orthogonal matching pursuit of the centre, started again until the share is used
    up (TAGCOS, arXiv 2407.15235, section 3).

    [ours]: shares by largest remainder, so that they add up to the budget (`Tagcos.as_published()` rounds down and may
    choose fewer); the weights of the pursuit are kept; k-means is seeded and trains on a sample (held in memory
    besides `memory_bytes`). The order of choice
    across clusters: the i-th of a cluster's k_c choices stands at (i + ½) / k_c, then the larger weight comes first, so
    that the beginning of the order covers all clusters in proportion.

    Columns of the selection: `cluster`, `step` (place among the choices of its cluster), `score` (inner product of the
    feature with its cluster's centre). The weights of a cluster's rows are those of its pursuit, scaled to add up to
    the number of its rows [ours], so that the weighted subset stands for the pool.
    """

    name: ClassVar[str] = "tagcos"
    paper: ClassVar[str] = "TAGCOS, arXiv 2407.15235"

    clusters: int = Field(100, ge=1, description="number of k-means clusters K; lowered where the pool is small")
    ridge: float = Field(1.0, ge=0, allow_inf_nan=False, description="ridge λ of the pursuit, for unit-norm features")
    tol: float = Field(1e-4, ge=0, allow_inf_nan=False, description="relative residual that ends a pass of the pursuit")
    apportionment: Literal["largest-remainder", "floor"] = Field(
        "largest-remainder", description="how shares become whole numbers; floor is the paper's, and loses up to K rows"
    )
    iterations: int = Field(25, ge=1, description="iterations of k-means")
    sample_per_cluster: int = Field(256, ge=1, description="k-means trains on at most so many random rows a cluster")
    memory_bytes: int = Field(
        DEFAULT_MEMORY_BYTES, ge=1 << 20, description="bound on the memory of k-means and of the pursuit, in bytes; "
        "the choice does not depend on it",
    )  # fmt: skip
    device: str = Field(
        "cpu", description="where a pursuit multiplies the rows of its cluster, cuda for a GPU; those that are too "
        "many for memory_bytes are read and multiplied by the CPU",
    )  # fmt: skip

    @field_validator("device")
    @classmethod
    def _is_there(cls, value: str) -> str:
        """Found out before k-means, not after it."""
        if value != "cpu":
            import torch  # reading settings need not wait for it

            try:
                torch.empty(0, dtype=torch.float64, device=value)  # what float32 leaves open is told in float64
            except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it was built for CUDA
                raise ValueError(f"not there ({str(error).splitlines()[0]}); take cpu") from error
        return value

    @classmethod
    def as_published(cls, **settings: Any) -> Tagcos:
        """TAGCOS without our changes: shares are rounded down, and fewer than the budget may be chosen."""
        return cls(**{**AS_PUBLISHED, **settings})

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        matrix = features.average()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            centres, assignment = kmeans(
                matrix, self.clusters, seed=seed, iterations=self.iterations,
                sample=self.sample_per_cluster * self.clusters,
            )  # fmt: skip
        if not centres.any():
            raise ValueError("the features are all zero")
        sizes = np.bincount(assignment, minlength=len(centres))
        share = floor_shares if self.apportionment == "floor" else largest_remainder
        shares = share(sizes, budget)
        if not shares.any():
            raise ValueError(
                f"rounded down, the shares of all {len(sizes)} clusters in a budget of {budget} are 0; "
                "lower `clusters`, or take apportionment='largest-remainder', as tagcos does"
            )
        pursuits = self._pursue(features.engine, matrix, centres, assignment, shares)
        warned = [str(warning.message) for warning in caught]
        if budget < (occupied := int(np.count_nonzero(sizes))):
            warned.append(
                f"a budget of {budget} rows for {occupied} clusters: {occupied - len(pursuits)} of them get none. With "
                f"clusters={budget} or fewer each has a row."
            )
        for message in warned:
            warnings.warn(message, stacklevel=3)
        return self._assemble(features, matrix, centres, sizes, pursuits, warned)

    def _pursue(
        self, engine: Engine, matrix: RowMatrix, centres: np.ndarray, assignment: np.ndarray, shares: np.ndarray
    ) -> dict[int, tuple[np.ndarray, PursuitResult]]:
        """For every cluster with a share, the rows of its members and what the pursuit chose among them."""
        by_cluster = np.argsort(assignment, kind="stable")
        sizes = np.bincount(assignment, minlength=len(centres))
        ends = np.cumsum(sizes)
        heaviest_first = np.argsort(-sizes * shares, kind="stable")  # so that workers end together
        clusters = [
            _Cluster(int(number), by_cluster[ends[number] - sizes[number] : ends[number]], centres[number],
                     int(shares[number]))
            for number in heaviest_first if shares[number]
        ]  # fmt: skip
        pursue = partial(
            _pursue_centre, matrix, ridge=self.ridge, tol=self.tol, memory_bytes=self.memory_bytes, device=self.device
        )
        pursuits = {}
        with progress("pursuit", int(shares.sum()), "rows chosen") as advance:
            for cluster, result in zip(clusters, engine.map(pursue, clusters), strict=True):
                pursuits[cluster.number] = (cluster.members[result.indices], result)
                advance(len(result.indices))
        return dict(sorted(pursuits.items()))

    def _assemble(
        self, features: Features, matrix: RowMatrix, centres: np.ndarray, sizes: np.ndarray,
        pursuits: dict[int, tuple[np.ndarray, PursuitResult]], warned: list[str],
    ) -> Selection:  # fmt: skip
        indices = np.concatenate([rows for rows, _ in pursuits.values()])
        weights = np.concatenate(
            [summing_to(result.weights, sizes[number]) for number, (_, result) in pursuits.items()]
        )
        steps = np.concatenate([np.arange(len(rows)) for rows, _ in pursuits.values()])
        lengths = [len(rows) for rows, _ in pursuits.values()]
        cluster = np.repeat(np.array(list(pursuits), dtype=np.int64), lengths)
        scores = np.concatenate(
            [gathered_dots(matrix, rows, centres[number], self.memory_bytes) for number, (rows, _) in pursuits.items()]
        )
        order = np.lexsort((indices, -weights, (steps + 0.5) / np.repeat(lengths, lengths)))
        columns = {"cluster": cluster[order], "step": steps[order], "score": scores[order]}
        diagnostics = {
            "clusters": [_describe(number, int(size), pursuits.get(number)) for number, size in enumerate(sizes)],
            "warnings": warned,
        }
        return self._selection(features, indices[order], weights[order], columns=columns, diagnostics=diagnostics)


@dataclass(frozen=True)
class _Cluster:
    """A cluster: its number, its rows (n_c,), its centre (d,), and how many of its rows are to be chosen."""

    number: int
    members: np.ndarray
    centre: np.ndarray
    share: int


def _pursue_centre(
    matrix: RowMatrix, cluster: _Cluster, *, ridge: float, tol: float, memory_bytes: int, device: str
) -> PursuitResult:
    """The pursuit of one centre by the members of its cluster; indices count the members."""
    rows: Matrix = RowView(matrix, cluster.members)
    size = len(cluster.members) * matrix.shape[1] * 4
    if size <= 3 * memory_bytes // 4:
        rows = on_device(np.ascontiguousarray(matrix[cluster.members], np.float32), device)
        memory_bytes -= size
    return matching_pursuit(
        rows, cluster.centre, cluster.share, ridge=ridge, tol=tol, memory_bytes=memory_bytes
    )  # fmt: skip


def _describe(number: int, size: int, pursuit: tuple[np.ndarray, PursuitResult] | None) -> dict[str, Any]:
    """One cluster in words and numbers; its residual curve has a value for every step of every pass."""
    if pursuit is None:
        return {"cluster": number, "size": size, "chosen": 0}
    rows, result = pursuit
    return {
        "cluster": number,
        "size": size,
        "chosen": len(rows),
        "passes": len(result.passes),
        "pass_steps": result.pass_steps.tolist(),
        "filled": result.filled,
        "drops": result.drops,
        "residuals": [float(value) for value in result.residuals],
    }
