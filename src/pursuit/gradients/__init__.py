"""Per-example gradients: captured from a batch, preconditioned, projected, and extracted over a whole pool."""

from pursuit.gradients.capture import ExampleGradients, batch_gradients, example_gradients
from pursuit.gradients.losses import example_losses
from pursuit.gradients.precondition import AdamState, Preconditioning, precondition
from pursuit.gradients.project import make_projection
from pursuit.models.trainable import trainable_parameters

__all__ = [
    "AdamState", "ExampleGradients", "Preconditioning", "batch_gradients", "example_gradients", "example_losses",
    "make_projection", "precondition", "trainable_parameters",
]  # fmt: skip
