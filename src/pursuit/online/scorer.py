"""Losses and features of candidates from one forward pass without graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pursuit.online.head import Head, check_head, language_model
from pursuit.online.row_norms import score
from pursuit.online.scoring import Labelled, labelled_hidden, precision, undisturbed
from pursuit.online.sketch import Sketch, make_sketch

FeatureKind = Literal["second_moment", "grad_norm", "embedding"]


@dataclass
class Scores:
    """What one scoring pass found out of s candidates.

    Attributes:
        losses: (s,) float64; NaN without a label, infinity where the loss is not finite.
        features: (s, d) float32, zero without a label; (s, 0) where none were asked for.
        labelled, normalisers: what `mean_gradient_squares` needs.
        row_squares: (s, V) mean squares of the rows of each one's gradient, where asked for.
        tokens: tokens of the pass, padding included; `share`: of the model that it ran.
        more_flops: operations beyond the model's own forward.
    """

    losses: np.ndarray
    features: np.ndarray
    labelled: Labelled | None
    normalisers: Tensor
    row_squares: Tensor | None = None
    tokens: int = 0
    share: float = 1.0
    more_flops: float = 0.0

    @classmethod
    def none(cls) -> Scores:
        """Of no candidates."""
        return cls(np.zeros(0), np.zeros((0, 0), np.float32), None, torch.zeros(0))


class Scorer:
    """Scores batches; holds the sketch and which model's head was compared with its logits.

    Args:
        feature: of the examples; None for losses alone.
        projection: numbers kept of a feature; 0 keeps all.
        seed: of the sketch.
        chunk: numbers held at once.
        dtype: autocast of the pass; as it is without.
        exit_layer: layers to run; all without.
    """

    def __init__(
        self, feature: FeatureKind | None, projection: int, seed: int, chunk: int, dtype: str | None,
        exit_layer: int | None,
    ) -> None:  # fmt: skip
        self.feature, self.projection, self.seed, self.chunk = feature, projection, seed, chunk
        self.dtype, self.exit_layer = dtype, exit_layer
        self._checked: tuple[int, float, float | None] | None = None
        self._sketches: dict[tuple[int, str], Sketch | None] = {}

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Any], head: Head, scales: Tensor | None = None,
        keep_rows: bool = False, at_once: int | None = None,
    ) -> Scores:  # fmt: skip
        """Score all candidates of `batch`.

        Args:
            head: the model's.
            scales: (V,) divisors of the gradient's rows; none without.
            keep_rows: leave the squares of the gradients' rows too, s · V numbers.
            at_once: padded tokens through the model at once; all if not given.
        """
        device = head.weight.device
        with undisturbed(model), precision(device, self.dtype):
            self._check(model, head, batch)
            tokens, passed = labelled_hidden(model, batch, self.exit_layer, at_once)
            features, squares = self._tables(head, tokens, keep_rows)

            def visit(example: int, norms: Tensor) -> None:
                if squares is not None:
                    squares[example] = norms.square() / tokens.hidden.shape[1]
                if features is not None:
                    row = norms if scales is None or self.feature != "second_moment" else norms / scales
                    features[example] = self._sketched(row)

            wanted = self.feature in ("second_moment", "grad_norm") or keep_rows
            found = score(head, tokens, self.chunk, visit if wanted else None)
            if self.feature == "embedding":
                features = self._means(tokens)
        losses = found.examples.cpu().double().numpy()
        has_label = np.asarray(tokens.counts) > 0
        losses = np.where(has_label & ~np.isfinite(losses), np.inf, losses)
        return Scores(
            losses, np.zeros((len(losses), 0), np.float32) if features is None else features.cpu().numpy(),
            tokens, found.normalisers, squares, passed, self._share(model),
            _norm_flops(head, tokens) if wanted else 0.0,
        )  # fmt: skip

    def _check(self, model: nn.Module, head: Head, batch: Mapping[str, Any]) -> None:
        """Once for each model: the head is what it is taken for."""
        found = (id(head.weight), head.scale, head.softcap)
        if self._checked != found:
            check_head(model, head, batch["input_ids"][0])
            self._checked = found

    def _tables(self, head: Head, tokens: Labelled, keep_rows: bool) -> tuple[Tensor | None, Tensor | None]:
        size, device, vocabulary = len(tokens.counts), tokens.hidden.device, head.vocabulary
        squares = torch.zeros(size, vocabulary, device=device) if keep_rows else None
        if self.feature not in ("second_moment", "grad_norm"):
            return None, squares
        width = vocabulary if self._sketch(vocabulary, device) is None else self.projection
        return torch.zeros(size, width, device=device), squares

    def _means(self, tokens: Labelled) -> Tensor:
        """Mean hidden state of each example's labelled positions."""
        hidden = tokens.hidden.float().split(tokens.counts)
        zero = torch.zeros(tokens.hidden.shape[1], device=tokens.hidden.device)
        return torch.stack([self._sketched(part.mean(dim=0) if len(part) else zero) for part in hidden])

    def _sketched(self, row: Tensor) -> Tensor:
        sketch = self._sketch(len(row), row.device)
        return row if sketch is None else sketch(row)

    def _sketch(self, inputs: int, device: torch.device) -> Sketch | None:
        key = (inputs, str(device))
        if key not in self._sketches:
            self._sketches[key] = make_sketch(inputs, self.projection, self.seed, device)
        return self._sketches[key]

    def _share(self, model: nn.Module) -> float:
        """Share of the model's layers that are run (the head's part is left out of this)."""
        if self.exit_layer is None:
            return 1.0
        return self.exit_layer / language_model(model).config.get_text_config().num_hidden_layers


def _norm_flops(head: Head, tokens: Labelled) -> float:
    width = tokens.hidden.shape[1]
    return float(sum(2 * count * min(count, width) * (head.vocabulary + width) for count in tokens.counts))
