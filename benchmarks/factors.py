"""What features lose when gradients are projected before they are formed, and when Adam's second moment has rank one.

    python -m benchmarks.factors --model FOLDER --pool POOL.jsonl --target TARGET.jsonl --run FOLDER [--rows 100]

After a short warm-up, made in the run folder if it does not stand there, the gradients of the rows at the last
checkpoint are formed once, and every form of the features is made of the very same gradients. Against the exact
features (nothing projected, Adam with its whole second moment): rank correlation and error of the inner products
between rows, rank correlation of the LESS scores, and what part of the choices of TAGCOS and LESS (10 % of the rows)
comes back. What another seed of the sparse projection changes is the measure for the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from pursuit import Features, Less, Run, Tagcos
from pursuit.batches import EncodedRows, collate, plan_batches
from pursuit.gradients import AdamState, Preconditioning, batch_gradients, make_projection, trainable_parameters
from pursuit.gradients.factors import Factors, make_factors
from pursuit.gradients.project import Projection
from pursuit.gradients.sketch import MatrixSketch, reduced
from pursuit.gradients.tensorsketch import make_tensor_sketch
from pursuit.recipes import Preconditioner, ProjectionKind
from pursuit.run.stages import Stages

PLAIN: Preconditioner = "sgd"
SMALL = {
    "on_bad_row": "skip", "lora": {"rank": 8, "alpha": 32},
    "warmup": {"batch_size": 6, "sample": 180, "checkpoint_steps": [30]},
}  # fmt: skip


@dataclass
class Form:
    """A way to make features of gradients: a preconditioner, perhaps a sketch of matrices, and a projection."""

    direction: Preconditioning
    sketch: MatrixSketch | None
    method: ProjectionKind
    dimension: int
    seed: int = 0
    projection: Projection | None = None

    def start(self, sizes: Mapping[str, int], examples: int) -> None:
        """Make ready for a batch."""
        if self.projection is None:
            sizes = sizes if self.sketch is None else self.sketch.sizes
            self.projection = make_projection(self.method, sum(sizes.values()), self.dimension, self.seed)
            self.offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        self.accumulator = self.projection.start(examples, torch.device("cpu"))

    def add(self, name: str, block: Tensor) -> None:
        """Take one parameter's gradients, (B, *shape)."""
        assert self.projection is not None
        if self.direction.sketch is not None:
            block = reduced(self.direction.sketch, name, block)
        self.projection.add(self.accumulator, self.offsets[name], self.direction(name, block.clone()).flatten(1))

    def rows(self) -> Tensor:
        """(B, d) of unit length."""
        assert self.projection is not None
        return nn.functional.normalize(self.projection.finish(self.accumulator), dim=1)


def features(model: nn.Module, encoded: EncodedRows, rows: int, forms: Mapping[str, Form]) -> dict[str, np.ndarray]:
    """(rows, d) of each form, from one pass."""
    parameters = trainable_parameters(model)
    sizes = {name: p.numel() for name, p in parameters.items()}
    found: dict[str, np.ndarray] = {}

    def consume(name: str, block: Tensor) -> None:
        for form in forms.values():
            form.add(name, block)

    for batch in plan_batches(range(rows), encoded.lengths, 512):
        for form in forms.values():
            form.start(sizes, len(batch))
        batch_gradients(model, collate(encoded, batch), parameters, consume)
        for name, form in forms.items():
            some = form.rows().numpy()
            found.setdefault(name, np.empty((rows, some.shape[1]), np.float32))[batch] = some
    return found


def spans(model: nn.Module, encoded: EncodedRows, rows: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Directions of each matrix on both sides, (R, R) and (C, C), those in which these rows are longest first."""
    parameters = trainable_parameters(model)
    sums = {
        name: [torch.zeros(side, side, dtype=torch.float64) for side in p.shape]
        for name, p in parameters.items()
        if p.dim() == 2
    }

    def consume(name: str, block: Tensor) -> None:
        if name in sums:
            unit = nn.functional.normalize(block.flatten(1), dim=1).view_as(block).double()
            sums[name][0] += torch.einsum("brc,bsc->rs", unit, unit)
            sums[name][1] += torch.einsum("brc,brd->cd", unit, unit)

    for batch in plan_batches(rows, encoded.lengths, 512):
        batch_gradients(model, collate(encoded, batch), parameters, consume)
    return {name: tuple(torch.linalg.eigh(one)[1].flip(1).float() for one in pair) for name, pair in sums.items()}


def fitted(plain: Factors, spans: Mapping[str, tuple[Tensor, Tensor]], share: float) -> Factors:
    """Factors as wide, whose first columns are leading directions, and the others random signs across the rest."""

    def side(matrix: Tensor | None, directions: Tensor) -> Tensor | None:
        if matrix is None:
            return None
        width = matrix.shape[1]
        leading = directions[:, : round(share * width)]
        signs = matrix[:, leading.shape[1] :] * (width / max(1, width - leading.shape[1])) ** 0.5
        return torch.cat([leading, signs - leading @ (leading.T @ signs)], dim=1)

    left = {name: side(matrix, spans[name][0]) for name, matrix in plain.left.items()}
    return replace(plain, left=left, right={name: side(m, spans[name][1]) for name, m in plain.right.items()})


def rank_one_moment(state: AdamState, arithmetic: bool) -> AdamState:
    """The state with every matrix' second moment replaced by r cᵀ: Adafactor's, or that of `rank_one`."""
    second = {}
    for name, value in state.exp_avg_sq.items():
        moment = value.double().clamp(min=1e-30)
        if value.dim() != 2:
            second[name] = value
        elif arithmetic:
            second[name] = (moment.mean(1)[:, None] * moment.mean(0)[None] / moment.mean()).float()
        else:
            logs = moment.log()
            second[name] = (logs.mean(1)[:, None] + logs.mean(0)[None] - logs.mean()).exp().float()
    return replace(state, exp_avg_sq=second)


def forms_for(
    model: nn.Module, state: AdamState, momentum: bool, dimensions: Sequence[int],
    spans: Mapping[str, tuple[Tensor, Tensor]],
) -> dict[str, tuple[Form, Form]]:  # fmt: skip
    """name → the form of the pool's rows, and that of the target's, whose gradients stay plain."""
    shapes = {name: p.shape for name, p in trainable_parameters(model).items()}
    found: dict[str, tuple[Form, Form]] = {}

    def add(
        title: str, kind: Preconditioner, moments: AdamState, method: ProjectionKind, d: int, seed: int = 0,
        wider: int = 1,
    ) -> None:  # fmt: skip
        sketch: MatrixSketch | None = None
        if method == "factored":
            sketch = make_factors(shapes, d * wider, seed, least=1)
        elif method == "tensorsketch":
            sketch = make_tensor_sketch(shapes, d, seed, worth=0, wider=wider)
        own, plain = (Preconditioning(which, moments, momentum, sketch=sketch) for which in (kind, PLAIN))
        found[title] = Form(own, sketch, method, d, seed), Form(plain, sketch, method, d, seed)

    kinds: tuple[Preconditioner, ...] = (PLAIN, "adam")
    for kind in kinds:
        add(f"{kind}, exact", kind, state, "none", 1)
        for d in dimensions:
            add(f"{kind}, sparse d={d}", kind, state, "sparse", d)
            add(f"{kind}, sparse d={d}, other seed", kind, state, "sparse", d, 1)
            for wider in (1, 4, 16):  # extraction takes 4, and forms small matrices
                add(f"{kind}, tensorsketch d={d}, {wider} × wider", kind, state, "tensorsketch", d, wider=wider)
            for wider in (1, 4, 16):  # what extraction takes lies between: 256 numbers a matrix, or d / matrices
                add(f"{kind}, factored d={d}, {wider} × wider", kind, state, "factored", d, wider=wider)
    for d, share in product(dimensions if spans else (), (1.0, 0.5, 0.25)):
        factors = fitted(make_factors(shapes, d, 0, least=1), spans, share)
        direction = Preconditioning(PLAIN, state, momentum, sketch=factors)
        title = f"{PLAIN}, factored d={d}, {share:g} of it fitted"
        found[title] = Form(direction, factors, "factored", d), Form(direction, factors, "factored", d)
    add("adam, Adafactor's moment", "adam", rank_one_moment(state, True), "none", 1)
    add("adam, moment of rank one", "adam", rank_one_moment(state, False), "none", 1)
    return found


def compare(pool: Mapping[str, np.ndarray], target: Mapping[str, np.ndarray], sources: pa.Array) -> None:
    """Print the table."""
    count = len(next(iter(pool.values())))
    budget = round(count / 10)

    def scores(name: str) -> np.ndarray:
        return pool[name] @ target[name].mean(axis=0)

    @cache
    def chosen(name: str, seed: int = 0) -> tuple[set[int], set[int]]:
        nothing = np.full((1, count), np.nan, np.float32)
        table = pa.table({"source": sources})
        held = Features([pool[name]], np.ones(1), table, nothing, nothing)
        aim = np.full((1, len(target[name])), np.nan, np.float32)
        goal = Features([target[name]], np.ones(1), pa.table({"source": ["t"] * len(target[name])}), aim, aim)
        clusters = Tagcos(clusters=10).select(held, budget, seed=seed)
        return set(clusters.indices.tolist()), set(Less().select(held, budget, target=goal).indices.tolist())

    upper = np.triu_indices(count, 1)
    print(f"{'':40} rows: rank  mean error | LESS score: rank | kept: TAGCOS  LESS")
    for name in pool:
        exact = name.split(",")[0] + ", exact"
        cosines = [(pool[which] @ pool[which].T)[upper] for which in (name, exact)]
        kept = [len(a & b) / budget for a, b in zip(chosen(name), chosen(exact), strict=True)]
        print(
            f"{name:40}   {spearmanr(*cosines)[0]:8.3f}  {np.abs(cosines[0] - cosines[1]).mean():10.4f} | "
            f"{spearmanr(scores(name), scores(exact))[0]:16.3f} | {kept[0]:12.2f}  {kept[1]:4.2f}"
        )
    again = len(chosen("adam, exact", 1)[0] & chosen("adam, exact")[0]) / budget
    print(f"TAGCOS with another k-means seed, exact features: {again:.2f} kept; at random {budget / count:.2f}")


def main() -> None:
    """Warm up where nothing stands, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pool", "target", "run"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--momentum", action="store_true", help="keep it in Adam's directions, as LESS does")
    parser.add_argument("--dimensions", type=int, nargs="*", default=[1024, 8192], help="d; none: moments alone")
    parser.add_argument("--fitted", type=int, default=0, help="further rows that factors are fitted to as well")
    parser.add_argument("--weights", nargs="*", help="patterns of weights of the model itself, for a LoRA")
    asked = parser.parse_args()
    settings = {**SMALL, **({"weights": asked.weights} if asked.weights else {})}
    run = Run(Path(asked.run), model=asked.model, pool=[asked.pool], target=[asked.target], **settings)
    trajectory, stages = run.warmup(), Stages(run.folder, run.settings)
    encoded, model = stages.encode(), stages.given.model
    target, _ = stages.encode_target()
    trajectory.load_into(model, 0)
    model.eval()
    rows = min(asked.rows, len(encoded))
    others = range(rows, min(rows + asked.fitted, len(encoded)))
    sides = spans(model, encoded, others) if others else {}
    forms = forms_for(model, trajectory.moments(0), asked.momentum, asked.dimensions, sides)
    found = features(model, encoded, rows, {name: pair[0] for name, pair in forms.items()})
    aims = features(model, target, len(target), {name: pair[1] for name, pair in forms.items()})
    size = sum(p.numel() for p in trainable_parameters(model).values())
    matrices = sum(p.dim() == 2 for p in trainable_parameters(model).values())
    print(f"P = {size:,} in {matrices} matrices, {rows} rows, {len(target)} of the target, checkpoint at step 30")
    compare(found, aims, encoded.rows["source"].slice(0, rows).combine_chunks())


if __name__ == "__main__":
    main()
