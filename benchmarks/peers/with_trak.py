"""TRAK: gradients by vmap, projected with dense random signs to as many numbers as 512 allow in bearable time."""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from common import TOKENS, Row, answer, asked_llama, losses, make_rows, parse
from trak import TRAKer
from trak.gradient_computers import FunctionalGradientComputer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import BasicProjector, ProjectionType

DIMENSION, ROWS = 64, 8
asked = parse()
if asked.lengths or asked.lora:
    raise SystemExit("TRAK is given rows of one length and all weights only")
model = asked_llama(asked, "eager")


class RowLoss(AbstractModelOutput):
    """The loss of one row, for vmap; of a batch, without weights."""

    def __init__(self) -> None:
        pass

    @staticmethod
    def get_output(model: Any, weights: Any, buffers: Any, ids: torch.Tensor, _: Any) -> torch.Tensor:
        if weights is None:
            return losses(model, {"input_ids": ids, "labels": ids})
        logits = torch.func.functional_call(model, (weights, buffers), kwargs={"input_ids": ids[None]}).logits[0, :-1]
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[1:].reshape(-1))

    def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> torch.Tensor:
        return torch.ones(len(batch[0]), 1)


size = sum(p.numel() for p in model.parameters())
projector = BasicProjector(
    grad_dim=size, proj_dim=DIMENSION, seed=0, proj_type=ProjectionType.rademacher, device=torch.device(asked.device),
    block_size=64, dtype=getattr(torch, asked.dtype),
)  # fmt: skip


def work(rows: list[Row]) -> None:
    ids = torch.tensor([row.ids for row in rows], device=asked.device)
    tracer = TRAKer(
        model, RowLoss(), train_set_size=len(ids), save_dir=tempfile.mkdtemp(), device=asked.device,
        projector=projector, proj_dim=DIMENSION, use_half_precision=False,
        gradient_computer=FunctionalGradientComputer,
    )  # fmt: skip
    tracer.load_checkpoint(model.state_dict(), model_id=0)
    for begin in range(0, len(ids), asked.batch):
        some = ids[begin : begin + asked.batch]
        numbers = torch.arange(begin, begin + len(some), device=asked.device)
        tracer.featurize(batch=[some, numbers], num_samples=len(some))


what = f"all {size / 1e6:.1f}M weights, dense signs to d={DIMENSION}, {TOKENS} tokens"
answer(work, make_rows(asked)[:ROWS], asked, what, ROWS)
