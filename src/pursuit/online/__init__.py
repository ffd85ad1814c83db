"""Choosing inside training: which candidates of a batch are trained on.

from pursuit.online import BatchSelectionMixin, OptBatch

class Trainer(BatchSelectionMixin, trl.SFTTrainer): ...
Trainer(..., batch_selection=OptBatch(prune=0.3, strata=3)).train()
"""

from pursuit.online.base import BatchSelector
from pursuit.online.baselines import FullBatch, HardestBatch, RandomBatch
from pursuit.online.batch import take
from pursuit.online.choice import Choice
from pursuit.online.infobatch import InfoBatch
from pursuit.online.optbatch import OptBatch
from pursuit.online.registry import BATCH_SELECTORS, batch_selection, load_state, save_state
from pursuit.online.trainer import BatchSelectionMixin

__all__ = [
    "BATCH_SELECTORS", "BatchSelectionMixin", "BatchSelector", "Choice", "FullBatch", "HardestBatch", "InfoBatch",
    "OptBatch", "RandomBatch", "batch_selection", "load_state", "save_state", "take",
]  # fmt: skip
