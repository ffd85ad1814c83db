"""OptBatch: the part of a batch that covers its losses and spreads widest in gradient space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from pursuit.errors import SelectionError
from pursuit.online.base import BatchSelector
from pursuit.online.batch import kept_count, take
from pursuit.online.choice import Choice
from pursuit.online.head import find_head
from pursuit.online.memory import Memory
from pursuit.online.moment import SecondMoment
from pursuit.online.row_norms import mean_gradient_squares
from pursuit.online.scorer import Scorer, Scores
from pursuit.online.scoring import Labelled
from pursuit.online.spread import spread_over
from pursuit.online.strata import clipped, drawn_counts, expected_counts, make_strata

UNOBSERVED = 512  # calls without `observe`; more micro batches than any step has


class OptBatch(BatchSelector):
    """Covers the losses of the batch and spreads widest in lm_head gradients scaled by their second moment.

    Of B candidates it keeps n = (1 − α) B (ICLR 2025 submission 13511; arXiv 2605.23969). All are run forward without
    graph; strata are cut by loss; each gets the share of n that draws with probability ∝ exp(loss) would give it; in
    each, hardest first, examples are added one by one that lie farthest from all chosen so far. The feature of an
    example has one number a vocabulary row: the norm of that row of its lm_head gradient, divided by √v̂ + eps.
    The paper calls this scaled gradient a Hessian gradient; it holds no second derivative.

    v̂ is Adam's second moment of the lm_head gradient, learnt by `observe` [ours: one number a row, its mean over the
    hidden axis]: of the weight's own gradient where the lm_head is trained (with tied embeddings that holds their part
    too, as Adam's does), else of the mean gradient of all chosen tokens, from the scores' own forward pass.
    """

    name: ClassVar[str] = "optbatch"
    paper: ClassVar[str] = "OptBatch, arXiv 2605.23969"

    prune: float = Field(0.3, ge=0, lt=1, description="α, share of the candidates that is not trained on.")
    strata: int = Field(3, ge=1, description="K, strata by loss; 1 does not stratify.")
    cut: Literal["quantile", "width"] = Field(
        "quantile", description="Strata of equal count, or of equal range of losses."
    )
    counts: Literal["expected", "drawn"] = Field(
        "expected", description="How many to keep of a stratum: the expectation of n draws ∝ exp(loss), or a draw."
    )
    order: Literal["hard-first", "easy-first"] = Field("hard-first", description="Which strata are chosen from first.")
    clip: float = Field(0.99, gt=0, le=1, description="Losses above this quantile of the batch count as it; 1: none.")
    feature: Literal["second_moment", "grad_norm", "embedding"] = Field(
        "second_moment", description="What examples spread in: row norms of the lm_head gradient scaled by the second "
        "moment, the same unscaled, or the mean hidden state before the lm_head.",
    )  # fmt: skip
    distance: Literal["l2", "cosine"] = Field("l2", description="Between features.")
    projection: int = Field(512, ge=0, description="Numbers kept of a feature, by a count sketch; 0 keeps all.")
    moment: Literal["gradient", "examples"] = Field(
        "gradient", description="Second moment of the gradient trained with, or the mean over the chosen of the "
        "squares of their own gradients, which costs nothing where the lm_head is frozen.",
    )  # fmt: skip
    beta2: float = Field(0.999, ge=0, lt=1, description="Of the running second moment; Adam's.")
    eps: float = Field(1e-8, gt=0, description="Added to √v̂; Adam's.")
    chunk: int = Field(
        2**25, ge=2**12, description="Numbers held at once for logits and what is made of them, 4 bytes each."
    )
    score_dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        None, description="Autocast of the scoring pass; as the training if not given."
    )
    exit_layer: int | None = Field(
        None, ge=1, description="Score after this many layers, through the same final norm and lm_head."
    )
    every: int = Field(1, ge=1, description="Score at each k-th call only.")
    between: Literal["random", "carried"] = Field(
        "random", description="How calls in between choose: at random, or by scores of the candidates' last visits."
    )
    carry: int = Field(
        1, ge=1, description="Score an example at each m-th of its visits, and use those scores in between."
    )

    _moment: SecondMoment = PrivateAttr()
    _memory: Memory = PrivateAttr(default_factory=Memory)
    _scorer: Scorer = PrivateAttr()
    _pending: list[tuple[Labelled, Tensor]] = PrivateAttr(default_factory=list)  # chosen tokens since the last step
    _unobserved: int = PrivateAttr(0)  # calls since the last step was observed
    _own_squares: list[Tensor] = PrivateAttr(default_factory=list)  # (n, V) mean squares of the chosen's own gradients

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._moment = SecondMoment(self.beta2)
        self._scorer = Scorer(self.feature, self.projection, self.seed, self.chunk, self.score_dtype, self.exit_layer)

    @property
    def needs_ids(self) -> bool:
        return self.carry > 1 or (self.every > 1 and self.between == "carried")

    @property
    def observes(self) -> bool:
        return self.feature == "second_moment" and (self.prune > 0 or callable(self.schedule))

    def _choose(self, model: nn.Module, batch: Mapping[str, Any], rate: float, ids: np.ndarray | None) -> Choice:
        size = len(batch["input_ids"])
        budget = kept_count(size, rate)
        self._expect_observe()
        scored = self._calls % self.every == 0
        stale = self._stale(ids, size)
        if not scored and (self.between == "random" or (ids is not None and not self._memory.known(ids).all())):
            return Choice(np.sort(self._generator().permutation(size)[:budget]))
        if not scored:
            stale = stale[:0]
        scores = self._score(model, batch, stale, ids)
        losses, features = scores.losses, scores.features
        if ids is not None:
            losses, features = self._remembered(ids, stale, scores)
        choice = self._chosen(losses, features, budget)
        choice.scored_tokens, choice.scored_share, choice.more_flops = scores.tokens, scores.share, scores.more_flops
        self._keep_for_moment(model, choice, stale, scores)
        return choice

    def _expect_observe(self) -> None:
        self._unobserved += 1
        if self.observes and self._unobserved > UNOBSERVED:
            raise SelectionError(
                f"{self.name}: {UNOBSERVED} batches were chosen from without observe(model), which learns the second "
                'moment. Call it once an optimizer step, before the step, or choose with feature="grad_norm".'
            )

    def _stale(self, ids: np.ndarray | None, size: int) -> np.ndarray:
        """Candidates to be scored now, (s,) indices."""
        if ids is None:
            return np.arange(size)
        known = self._memory.known(ids)
        fresh = known.copy()
        fresh[known] = self._memory.visits(ids[known]) < self.carry - 1
        return np.flatnonzero(~fresh) if self.carry > 1 else np.arange(size)

    def _score(self, model: nn.Module, batch: Mapping[str, Any], stale: np.ndarray, ids: np.ndarray | None) -> Scores:
        if len(stale) == 0:
            return Scores.none()
        head = find_head(model)
        keep_rows = self.observes and self.moment == "examples"
        scales = self._moment.scales(self.eps, head.weight.device)
        return self._scorer(model, take(batch, stale), head, scales, keep_rows, self._at_once)

    def _remembered(self, ids: np.ndarray, stale: np.ndarray, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
        """Losses and features of all candidates, those just scored and those of earlier visits.

        Features are kept relative to the root mean square norm of those scored with them [ours]: the running moment has
        changed their scale since, and choices do not depend on a scale that all share.
        """
        fresh = np.setdiff1d(np.arange(len(ids)), stale)
        if len(stale):
            self._memory.store(ids[stale], scores.losses, _of_norm_one(scores.features))
        self._memory.visit(np.unique(ids[fresh]))
        return self._memory.losses(ids), self._memory.features(ids)

    def _chosen(self, losses: np.ndarray, features: np.ndarray, budget: int) -> Choice:
        """The published choice among candidates with finite scores; NaN is the loss of one without a label."""
        valid = np.isfinite(losses) & np.isfinite(features).all(axis=1)
        dropped = int((~valid & ~np.isnan(losses)).sum())
        self._note_dropped(dropped, losses)
        strata = np.full(len(losses), -1, dtype=np.int64)
        if not valid.any():  # no label in any: the same as what training on all would do
            return Choice(np.arange(budget), losses, strata)
        places = np.flatnonzero(valid)
        budget = min(budget, len(places))
        bounded = clipped(losses[places], self.clip)
        strata[places] = within = make_strata(bounded, self.strata, self.cut)
        if self.counts == "expected":
            counts = expected_counts(bounded, within, budget)
        else:
            counts = drawn_counts(bounded, within, budget, self._generator())
        plan = [(stratum, int(count)) for stratum, count in enumerate(counts)]
        if self.order == "hard-first":
            plan.reverse()
        spread = spread_over(features[places], within, plan, self.distance)
        return Choice(places[spread.indices], losses, strata, spread.distances, dropped=dropped)

    def _keep_for_moment(self, model: nn.Module, choice: Choice, stale: np.ndarray, scores: Scores) -> None:
        """Put by what `observe` will need of the chosen that were scored in this call."""
        if not self.observes or scores.tokens == 0:
            return
        chosen = np.flatnonzero(np.isin(stale, choice.order)).tolist()
        if scores.row_squares is not None:
            self._own_squares.append(scores.row_squares[chosen])
        elif not find_head(model).weight.requires_grad and scores.labelled is not None:
            counts = scores.labelled.counts
            normalisers = scores.normalisers.split(counts)
            kept = torch.cat([normalisers[i] for i in chosen]) if chosen else scores.normalisers[:0]
            self._pending.append((scores.labelled.of(chosen), kept))

    def observe(self, model: nn.Module) -> None:
        """Take the gradient of the chosen into the running second moment; between backward and the optimizer's step.

        Raises:
            SelectionError: the lm_head is trained and has no gradient, as after `zero_grad`.
        """
        self._unobserved = 0
        if not self.observes:
            return
        head = find_head(model)
        squares: Tensor | None = None
        if self.moment == "examples":
            own = [squares for squares in self._own_squares if len(squares)]
            squares = torch.cat(own).mean(dim=0) if own else None
        elif head.weight.requires_grad:
            if head.weight.grad is None:
                raise SelectionError(
                    f"{self.name}: the lm_head has no gradient to observe. Call observe(model) after backward() and "
                    "before optimizer.zero_grad()."
                )
            norms = torch.linalg.vector_norm(head.weight.grad, dim=1, dtype=torch.float32)
            squares = norms.square_() / head.weight.shape[1]
        elif self._pending:
            squares = mean_gradient_squares(head, self._pending, self.chunk)
        self._pending.clear()
        self._own_squares.clear()
        self._moment.update(squares, head.vocabulary, head.weight.device)

    def reset(self) -> None:
        super().reset()
        self._moment, self._memory, self._unobserved = SecondMoment(self.beta2), Memory(), 0
        self._pending.clear()
        self._own_squares.clear()

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **self._moment.state(), **self._memory.state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self._moment.load(state)
        self._memory.load(state)


def _of_norm_one(features: np.ndarray) -> np.ndarray:
    """Features (s, d) over the root mean square of their norms."""
    squares = np.square(features, dtype=np.float64).sum(axis=1)
    known = squares[np.isfinite(squares) & (squares > 0)]  # zero: no label
    return features / np.sqrt(known.mean()) if len(known) else features
