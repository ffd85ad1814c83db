"""What a pass for gradients costs, by counting: floating-point operations, which other machines need as well.

A weight matrix of n entries takes 2n operations a token forward and 2n backward to its input; its own gradient is not
made. Adapters are passed forward and backward, and their gradients are made: 6n. Attention's two products take
4 · T · hidden a layer and token forward, and twice that backward. Logits are made of labelled tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from pursuit.gradients.sketch import MatrixSketch
from pursuit.models.quantized import entries
from pursuit.models.trainable import parameter_count, trainable_parameters


@dataclass(frozen=True)
class Shape:
    """What counts of a model.

    Attributes:
        body: entries of the frozen weight matrices that every token passes; `head` of the one that makes logits.
        layers, hidden: of the body.
        adapters: entries of the adapters; 0 where the model's own weights are captured.
        captured: entries of the model's own weights whose gradients are formed.
        sketching: operations a token to project the others before they are formed.
    """

    body: int
    head: int
    layers: int
    hidden: int
    adapters: int = 0
    captured: int = 0
    sketching: float = 0.0

    def operations(self, tokens: float, mean_length: float, labelled: float) -> float:
        """Of one pass over so many padded tokens in rows of so many, of which so many are labelled."""
        attention = 12 * mean_length * self.hidden * self.layers
        each = 4 * self.body + 6 * self.adapters + 2 * self.captured + self.sketching + attention
        return tokens * each + labelled * 4 * self.head


def shape_of(model: nn.Module, sketch: MatrixSketch | None = None) -> Shape:
    """Count a model; with a sketch the gradients of its matrices are not formed."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    output = model.get_output_embeddings()  # type: ignore[operator]
    head = 0 if output is None else entries(output.weight)
    matrices = {
        id(m.weight): entries(m.weight)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | Conv1D) and m is not output and "lora_" not in name
    }
    trained = parameter_count(model)
    unformed = sum(p.numel() for name, p in trainable_parameters(model).items() if sketch and name in sketch)
    own = any("lora_" not in name for name, p in model.named_parameters() if p.requires_grad)
    return Shape(
        body=sum(matrices.values()), head=head, layers=config.num_hidden_layers, hidden=config.hidden_size,
        adapters=0 if own else trained, captured=trained - unformed if own else 0,
        sketching=sketch.operations() if sketch else 0.0,
    )  # fmt: skip
