"""Batch selection inside transformers' Trainer: what reaches the model, and the weights that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer

from online_trainers import MODELS, Recording, Watched, rows, same_weights, train
from pursuit.online import FullBatch, InfoBatch, OptBatch, RandomBatch, take
from tiny import CONFIGS, tiny_model


@pytest.mark.parametrize("kind", CONFIGS)
def test_infobatch_is_told_the_losses_of_training_in_every_architecture(tmp_path: Path, kind: str) -> None:
    """By what reaches the head: some models do not call what transformers takes for the layers below it."""
    told: list[tuple[Any, torch.Tensor]] = []

    class Told(InfoBatch):
        def remember(self, ids: Any, losses: Any) -> None:
            told.append((ids, losses.detach().cpu()))
            super().remember(ids, losses)

    none = {"gpt2": {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}, "opt": {"dropout": 0.0}}  # dropout
    model, data = tiny_model(kind, **none.get(kind, {})), rows(8)
    train(tmp_path, Told(prune=0.5, anneal=0), model, data=data, max_steps=2, learning_rate=0.0)
    model.eval()
    assert len(told) == 2
    for ids, losses in told:
        for place, loss in zip(ids.tolist(), losses.tolist(), strict=True):
            one = {name: torch.tensor([data[place][name]]) for name in ("input_ids", "labels")}
            assert loss == pytest.approx(float(model(**one).loss.detach()), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "bf16": True}], ids=["plain", "bf16"])
@pytest.mark.parametrize("selection", [OptBatch(prune=0), FullBatch(), RandomBatch(prune=0), InfoBatch(prune=0)])
def test_nothing_left_out_gives_the_unmodified_trainers_weights_bit_for_bit(
    selection: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = {"attention_dropout": 0.2, "tie_word_embeddings": False}
    plain = train(tmp_path, None, tiny_model("llama", **model), kind=Trainer, **settings)
    ours = train(tmp_path, selection, tiny_model("llama", **model), **settings)
    assert same_weights(plain.model, ours.model)
    assert [entry.get("loss") for entry in plain.state.log_history] == [e.get("loss") for e in ours.state.log_history]


def test_without_a_selection_the_mix_in_changes_nothing(tmp_path: Path) -> None:
    assert same_weights(train(tmp_path, None, kind=Trainer).model, train(tmp_path, None).model)


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 3}, {"bf16": True}, {"gradient_checkpointing": True}],
    ids=["plain", "accumulation", "bf16", "checkpointing"],
)
def test_only_the_kept_are_trained_on(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = MODELS[kind]()
    watched = Watched(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    selector = OptBatch(prune=0.5)
    trainer = train(tmp_path, selector, model, **settings)
    assert set(watched.sizes) == {2}
    assert len(watched.sizes) == 4 * settings.get("gradient_accumulation_steps", 1)
    assert selector._moment.steps == 4
    assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


def test_the_choice_is_the_one_a_plain_loop_makes_and_so_are_the_weights(tmp_path: Path) -> None:
    """With accumulation: the loss is a mean over the kept tokens of all micro batches of a step."""
    settings = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    ours = train(tmp_path, OptBatch(prune=0.5), kind=Recording, **settings)

    model = tiny_model("llama", tie_word_embeddings=False).train()
    selector = OptBatch(prune=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    for step in range(4):
        kept = []
        for batch, choice in ours.seen[2 * step : 2 * step + 2]:
            kept.append(take(batch, selector(model, batch)))
            assert selector.last is not None
            assert selector.last.order.tolist() == choice.order.tolist()
        tokens = sum(int((part["labels"][:, 1:] != -100).sum()) for part in kept)
        for part in kept:
            logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits[:, :-1]
            loss = nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), part["labels"][:, 1:].reshape(-1), reduction="sum"
            )
            (loss / tokens).backward()
        selector.observe(model)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-3, atol=2e-5)
