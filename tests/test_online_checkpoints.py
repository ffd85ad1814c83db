"""Batch selection through TRL's trainer, across a checkpoint, in the log; and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from online_trainers import Recording, Selecting, Watched, lora, rows, same_weights, train
from pursuit.errors import SelectionError, SettingsError, StoreError
from pursuit.online import BatchSelectionMixin, HardestBatch, InfoBatch, OptBatch, RandomBatch
from tiny import tiny_model, tiny_tokenizer

CHAT = [
    {
        "prompt": [{"role": "user", "content": f"Count to {i}."}],
        "completion": [{"role": "assistant", "content": "1 " * i}],
    }
    for i in range(1, 25)
]


class SelectingSFT(BatchSelectionMixin, SFTTrainer):
    pass


def train_sft(folder: Path, selection: Any, model: nn.Module, kind: Any = SelectingSFT, **settings: Any) -> Any:
    values = {
        "per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "seed": 1,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "log_level": "error",
        "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    more = {} if kind is SFTTrainer else {"batch_selection": selection}
    trainer = kind(
        model=model, args=SFTConfig(output_dir=str(folder), **{**values, **settings}),
        processing_class=tiny_tokenizer(), train_dataset=datasets.Dataset.from_list(CHAT), **more,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_trl_trains_on_the_kept_and_logs_what_was_chosen(tmp_path: Path) -> None:
    model = lora(tie_word_embeddings=False)
    watched = Watched(model)
    trainer = train_sft(tmp_path, OptBatch(prune=0.5), model, gradient_accumulation_steps=2, bf16=True)
    assert set(watched.sizes) == {2}
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in entries:
        assert entry["batch_selection/kept"] == 2
        assert entry["batch_selection/candidates"] == 4
        assert sum(entry[f"batch_selection/kept_stratum_{k}"] for k in range(3)) == 2
        assert entry["batch_selection/candidate_loss"] > 0
        assert entry["batch_selection/kept_loss"] > 0
        assert entry["batch_selection/spread"] > 0
        assert 0 < entry["batch_selection/seconds"] < 60
    assert "batch_selection/kept" not in trainer.state.log_history[-1]


def test_trl_without_pruning_is_the_unmodified_trainer(tmp_path: Path) -> None:
    plain = train_sft(tmp_path, None, tiny_model("qwen2"), SFTTrainer, gradient_accumulation_steps=2)
    ours = train_sft(tmp_path, OptBatch(prune=0), tiny_model("qwen2"), gradient_accumulation_steps=2)
    assert same_weights(plain.model, ours.model)


def test_trl_remembers_examples_by_row(tmp_path: Path) -> None:
    selector = OptBatch(prune=0.5, carry=2)
    train_sft(tmp_path, selector, tiny_model("llama"), max_steps=9)
    assert sorted(selector._memory._place) == list(range(24))
    info = InfoBatch(prune=0.5)
    train_sft(tmp_path, info, tiny_model("llama"), max_steps=9)
    assert sorted(info._memory._place) == list(range(24))


def test_the_logged_loss_is_a_mean_over_the_kept_tokens(tmp_path: Path) -> None:
    selector = HardestBatch(prune=0.5)
    trainer = train(tmp_path, selector, tiny_model("llama"), max_steps=1, logging_steps=1, learning_rate=0.0)
    assert selector.last is not None
    batch = next(iter(trainer.get_train_dataloader()))
    counts = (batch["labels"][:, 1:] != -100).sum(dim=1).numpy()
    kept, losses = selector.last.indices, selector.last.losses
    expected = float((losses[kept] * counts[kept]).sum() / counts[kept].sum())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_flops_are_those_of_the_scoring_and_of_the_kept(tmp_path: Path) -> None:
    plain = train(tmp_path, None, data=rows(24, same_length=12))
    random = train(tmp_path, RandomBatch(prune=0.5), data=rows(24, same_length=12))
    ours = train(tmp_path, OptBatch(prune=0.5), data=rows(24, same_length=12))
    assert random.state.total_flos == pytest.approx(plain.state.total_flos / 2)
    assert plain.state.total_flos / 2 < ours.state.total_flos < plain.state.total_flos
    entry = ours.state.log_history[0]
    weights = sum(p.numel() for p in ours.model.parameters()) - ours.model.model.embed_tokens.weight.numel()
    tokens = 2 * 4 * 12  # two steps
    assert entry["batch_selection/flops_spent"] + entry["batch_selection/flops_saved"] == 6 * weights * tokens
    scored_and_trained = (2 + 6 / 2) * weights * tokens
    assert scored_and_trained < entry["batch_selection/flops_spent"] < 1.3 * scored_and_trained


def weighted_gradient(model: nn.Module, batch: dict[str, Tensor], weights: dict[int, float]) -> Tensor:
    """Gradient of Σ w_i · (sum of example i's token losses) / labelled tokens of all candidates."""
    total = (batch["labels"][:, 1:] != -100).sum()
    model.zero_grad()
    for row, weight in weights.items():
        logits = model(input_ids=batch["input_ids"][row : row + 1]).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, batch["labels"][row, 1:], reduction="sum")
        (weight * loss / total).backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    return gradient


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(kwargs["model"].lm_head.weight.grad.clone())


def test_infobatch_weighs_what_it_keeps_of_the_easy(tmp_path: Path) -> None:
    selector, gradients = InfoBatch(prune=0.5, anneal=0.0), Gradients()
    model = tiny_model("llama", tie_word_embeddings=False)
    trainer = train(
        tmp_path, selector, model, max_steps=12, learning_rate=0.0, max_grad_norm=0.0, callbacks=[gradients],
        per_device_train_batch_size=8, kind=Recording,
    )  # fmt: skip
    mixed = 0
    for (batch, choice), found in zip(trainer.seen, gradients.seen, strict=True):
        factors = np.ones(8) if choice.weights is None else choice.weights
        mixed += set(factors.tolist()) == {1.0, 2.0} and len(choice.indices) < 8
        expected = weighted_gradient(model, batch, dict(zip(choice.indices.tolist(), factors.tolist(), strict=True)))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert mixed >= 3


class Chosen(TrainerCallback):
    def __init__(self, selector: Any) -> None:
        self.selector, self.orders = selector, {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.orders[state.global_step] = self.selector.last.order.tolist()


@pytest.mark.parametrize(
    ("make", "model"),
    [
        (lambda: OptBatch(prune=0.5), lambda: tiny_model("llama", tie_word_embeddings=False)),
        (lambda: OptBatch(prune=0.5, carry=2, counts="drawn"), lora),
        (lambda: OptBatch(prune=0.5, moment="examples", every=2, schedule="warmup", ramp=0.5), lora),
        (lambda: InfoBatch(prune=0.5, anneal=0.2), lora),
    ],
    ids=["full", "carry", "every", "infobatch"],
)
def test_a_resumed_training_chooses_and_ends_the_same(make: Any, model: Any, tmp_path: Path) -> None:
    settings = {"max_steps": 14, "save_strategy": "steps", "save_steps": 9}
    whole = Chosen(straight := make())
    first = train(tmp_path / "a", straight, model(), callbacks=[whole], **settings)
    second_part = Chosen(resumed := make())
    folder = tmp_path / "a" / "checkpoint-9"
    assert (folder / "batch_selection.safetensors").exists()
    assert load_file(folder / "batch_selection.safetensors")["calls"].item() == 9
    again = train(tmp_path / "b", resumed, model(), callbacks=[second_part], resume=str(folder), **settings)
    assert second_part.orders == {step: whole.orders[step] for step in range(10, 15)}
    assert same_weights(first.model, again.model)


def test_resuming_with_another_selector_is_refused_and_from_a_plain_run_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(tmp_path / "a", OptBatch(prune=0.5), **settings)
    with pytest.raises(StoreError, match="the state of 'optbatch', not of 'random'"):
        train(tmp_path / "b", RandomBatch(prune=0.5), resume=str(tmp_path / "a" / "checkpoint-2"), **settings)
    train(tmp_path / "c", None, **settings)
    train(tmp_path / "d", OptBatch(prune=0.5), resume=str(tmp_path / "c" / "checkpoint-2"), **settings)
    assert "batch selection starts afresh" in " ".join(capsys.readouterr().err.split())


def test_a_second_training_begins_afresh(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    trainer = train(tmp_path, OptBatch(prune=0.5), model)
    assert trainer.batch_selection._calls == 4
    trainer.train()
    assert trainer.batch_selection._calls == 4
    assert trainer.batch_selection._moment.steps == 4


@pytest.mark.parametrize(("setting", "value"), [("packing", True), ("padding_free", True)])
def test_packing_is_refused_before_data_are_prepared(setting: str, value: bool, tmp_path: Path) -> None:
    arguments = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **{setting: value})
    with pytest.raises(SelectionError, match=f"{setting}=True puts several into one row. Set {setting}=False"):
        SelectingSFT(model="no such model", args=arguments, batch_selection=OptBatch(), train_dataset=CHAT)


def test_a_stream_has_no_rows_to_remember(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="numbered rows"):
        train(tmp_path, OptBatch(prune=0.5, carry=2), data=rows().to_iterable_dataset())
    trainer = train(tmp_path, OptBatch(prune=0.5), data=rows().to_iterable_dataset())
    assert trainer.batch_selection._calls == 4


def test_rows_of_any_kind_are_numbered(tmp_path: Path) -> None:
    plain = [dict(row) for row in rows()]
    selector = OptBatch(prune=0.5, carry=2)
    train(tmp_path, selector, data=plain, max_steps=6, dataloader_num_workers=1)
    assert sorted(selector._memory._place) == list(range(24))


def test_a_selector_goes_by_its_name_or_is_named_as_wrong(tmp_path: Path) -> None:
    assert isinstance(train(tmp_path, "random", max_steps=1).batch_selection, RandomBatch)
    with pytest.raises(SettingsError, match=r"no batch selection 'rando'\. Did you mean 'random'"):
        train(tmp_path, "rando")
    with pytest.raises(SettingsError, match=r"a selector such as OptBatch\(prune=0.3\), or its name, not 0.3"):
        train(tmp_path, 0.3)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    arguments._n_gpu = 2
    with pytest.raises(SelectionError, match=r"DataParallel.*accelerate launch"):
        Selecting(model=tiny_model("llama"), args=arguments, train_dataset=rows(), batch_selection=OptBatch())


def test_a_nan_candidate_does_not_reach_the_training(tmp_path: Path) -> None:
    data = [dict(row) for row in rows()]
    for row in data:
        row["input_ids"] = [min(token, 499) for token in row["input_ids"]]
    data[5]["input_ids"][-1] = 500
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[500] = torch.nan
    model.model.embed_tokens.requires_grad_(False)
    plain = tiny_model("llama", tie_word_embeddings=False)
    plain.load_state_dict(model.state_dict())
    settings = {"data": data, "max_steps": 6, "logging_steps": 6}
    trainer = train(tmp_path, OptBatch(prune=0.5), model, **settings)
    assert torch.isfinite(trainer.model.lm_head.weight).all()
    assert trainer.state.log_history[0]["batch_selection/dropped"] == 1
    without = train(tmp_path, None, plain, kind=Trainer, **settings)
    assert not np.isfinite(without.model.lm_head.weight.detach()).all()
