"""Weighted losses in transformers' and TRL's trainers, against a loop of plain autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
import trl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForSeq2Seq

from pursuit.errors import DataError, SettingsError
from pursuit.finetune import WeightedLossMixin
from pursuit.models.loading import Lora, prepare_trainable, trainable_parameters
from pursuit.online import BatchSelectionMixin, RandomBatch
from tiny import tiny_model, tiny_tokenizer


class WeightedTrainer(WeightedLossMixin, transformers.Trainer):
    pass


class WeightedSFTTrainer(WeightedLossMixin, trl.SFTTrainer):
    pass


Row = dict[str, Any]
RATE = 0.5


def rows_of(lengths: list[int], weights: list[float] | None, seed: int = 0) -> list[Row]:
    """Random tokens whose second half is learnt."""
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    for place, length in enumerate(lengths):
        ids = generator.integers(5, 512, length).tolist()
        row = {"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]}
        rows.append(row if weights is None else {**row, "weight": weights[place]})
    return rows


def new_model(kind: str = "llama", lora: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny_model(kind).to(dtype)
    if lora:
        return prepare_trainable(model, lora=Lora(rank=4, alpha=16, dropout=0.0))
    return model.requires_grad_(True)


def arguments(folder: Path, kind: str, **changes: Any) -> Any:
    """Plain gradient descent in the rows' order, so that every step is easy to write out."""
    given: dict[str, Any] = {
        "output_dir": str(folder), "optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "bf16": False, "train_sampling_strategy": "sequential", **changes,
    }  # fmt: skip
    if kind == "sft":
        return trl.SFTConfig(max_length=None, gradient_checkpointing=False, **given)
    return transformers.TrainingArguments(**given)


def trained(kind: str, model: Any, rows: list[Row], folder: Path, *, weighted: bool = True, **changes: Any) -> Any:
    """The model after two steps by a trainer."""
    tokenizer, dataset = tiny_tokenizer(), datasets.Dataset.from_list(rows)
    args = arguments(folder, kind, **changes)
    if kind == "sft":
        trainer = (WeightedSFTTrainer if weighted else trl.SFTTrainer)(
            model=model, args=args, train_dataset=dataset, processing_class=tokenizer
        )
    else:
        trainer = (WeightedTrainer if weighted else transformers.Trainer)(
            model=model, args=args, train_dataset=dataset, data_collator=DataCollatorForSeq2Seq(tokenizer)
        )
    trainer.train()
    return model


def written_out(
    model: Any, rows: list[Row], weights: list[float], batch: int = 4, steps: int = 2, mean: float | None = None
) -> Any:
    """The same by hand: a row at a time, unpadded; each step's loss is Σ v ℓ / n over its tokens."""
    model.train()
    parameters = list(trainable_parameters(model).values())
    mean = mean or float(np.mean([weight for weight in weights if weight > 0]))
    for step in range(steps):
        some = range(step * batch, min((step + 1) * batch, len(rows)))
        count = sum(sum(label != -100 for label in rows[row]["labels"][1:]) for row in some if weights[row] > 0)
        total = torch.zeros(())
        for row in some:
            ids, labels = (torch.tensor(rows[row][name]) for name in ("input_ids", "labels"))
            logits = model(input_ids=ids[None]).logits[0, :-1].float()
            total = total + weights[row] / mean * cross_entropy(logits, labels[1:], reduction="sum") / count
        gradients = torch.autograd.grad(total, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= RATE * gradient
    return model


def assert_same(first: Any, second: Any, tolerance: float = 1e-5) -> None:
    theirs = trainable_parameters(second)
    for name, parameter in trainable_parameters(first).items():
        assert torch.allclose(parameter, theirs[name], rtol=tolerance, atol=tolerance), name


LENGTHS, WEIGHTS = [9, 23, 6, 14, 31, 8, 12, 17], [0.5, 3.0, 0.1, 1.0, 2.0, 0.0, 7.5, 0.25]


@pytest.mark.parametrize("kind", ["transformers", "sft"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_step_follows_the_weighted_gradient(kind: str, lora: bool, tmp_path: Path) -> None:
    rows = rows_of(LENGTHS, WEIGHTS)
    model = trained(kind, new_model(lora=lora), rows, tmp_path)
    by_hand = written_out(new_model(lora=lora), rows, WEIGHTS)
    assert_same(model, by_hand)
    untouched = written_out(new_model(lora=lora), rows, [1.0] * len(rows))
    name, parameter = next(reversed(trainable_parameters(model).items()))
    assert not torch.allclose(parameter, trainable_parameters(untouched)[name], atol=1e-4)  # weights do matter


@pytest.mark.parametrize("kind", ["transformers", "sft"])
@pytest.mark.parametrize("value", [1.0, 0.3])
def test_equal_weights_train_as_the_unweighted_trainer(kind: str, value: float, tmp_path: Path) -> None:
    rows = rows_of(LENGTHS, [value] * len(LENGTHS))
    plain = rows_of(LENGTHS, None)
    assert_same(
        trained(kind, new_model(), rows, tmp_path),
        trained(kind, new_model(), plain, tmp_path, weighted=False), tolerance=2e-6,
    )  # fmt: skip


def test_weights_only_count_relative_to_each_other(tmp_path: Path) -> None:
    some = trained("transformers", new_model(), rows_of(LENGTHS, WEIGHTS), tmp_path)
    many = trained("transformers", new_model(), rows_of(LENGTHS, [1000 * w for w in WEIGHTS]), tmp_path)
    assert_same(some, many, tolerance=1e-6)


@pytest.mark.parametrize("accumulated", [1, 2, 4])
def test_cutting_a_step_into_micro_batches_changes_nothing(accumulated: int, tmp_path: Path) -> None:
    sizes = {"per_device_train_batch_size": 4 // accumulated, "gradient_accumulation_steps": accumulated}
    model = trained("sft", new_model(), rows_of(LENGTHS, WEIGHTS), tmp_path, **sizes)
    assert_same(model, written_out(new_model(), rows_of(LENGTHS, WEIGHTS), WEIGHTS))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(2, 40), st.sampled_from([0.0, 1e-6, 0.5, 1.0, 40.0])), min_size=4, max_size=9
    ).filter(lambda rows: any(weight for _, weight in rows[:4]) and any(weight for _, weight in rows[4:8] or rows[:4]))
)
def test_any_lengths_and_weights(tmp_path: Path, rows: list[tuple[int, float]]) -> None:
    lengths, weights = [length for length, _ in rows], [weight for _, weight in rows]
    made = rows_of(lengths, weights)
    steps = 1 + (len(rows) > 4)
    model = trained("transformers", new_model(), made, tmp_path, max_steps=steps)
    assert_same(model, written_out(new_model(), made, weights, steps=steps), tolerance=1e-4)


@pytest.mark.parametrize("kind", ["transformers", "sft"])
def test_a_row_of_weight_zero_has_no_effect(kind: str, tmp_path: Path) -> None:
    """Neither what it says nor how long it is."""
    rows = rows_of(LENGTHS, WEIGHTS)
    other = rows_of([*LENGTHS[:5], 40, *LENGTHS[6:]], WEIGHTS)
    others = [other[place] if place == 5 else row for place, row in enumerate(rows)]
    assert_same(trained(kind, new_model(), rows, tmp_path), trained(kind, new_model(), others, tmp_path), 1e-6)


def test_a_step_of_weight_zero_alone_leaves_the_weights(tmp_path: Path) -> None:
    rows = rows_of(LENGTHS, [0.0] * 4 + [1.0] * 4)
    assert_same(trained("sft", new_model(), rows, tmp_path, max_steps=1), new_model(), tolerance=0)


def test_bfloat16_is_within_its_rounding(tmp_path: Path) -> None:
    rows = rows_of(LENGTHS, WEIGHTS)
    kept = {"learning_rate": RATE, "bf16": True, "max_steps": 1}
    model = trained("sft", new_model(), rows, tmp_path, **kept)
    exact, start = written_out(new_model(), rows, WEIGHTS, steps=1), new_model()
    moves, wanted = (
        torch.cat([(p - q).flatten() for p, q in zip(m.parameters(), start.parameters(), strict=True)])
        for m in (model, exact)
    )
    assert float((moves - wanted).norm() / wanted.norm()) < 0.03


def test_evaluation_is_not_weighted_and_needs_no_weights(tmp_path: Path) -> None:
    rows, tokenizer = rows_of(LENGTHS, WEIGHTS), tiny_tokenizer()
    losses = []
    for made, kind in ((rows, WeightedTrainer), (rows_of(LENGTHS, None), WeightedTrainer), (rows, None)):
        held_out = datasets.Dataset.from_list(made)
        trainer = (kind or transformers.Trainer)(
            model=new_model(), args=arguments(tmp_path, "transformers"), train_dataset=datasets.Dataset.from_list(rows),
            eval_dataset=held_out if kind else held_out.remove_columns("weight"),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )  # fmt: skip
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == losses[1] == losses[2]


def test_text_that_trl_tokenises_keeps_its_weights(tmp_path: Path) -> None:
    """From `messages` as exported for TRL, through its own tokenising and shuffling, to the loss."""
    messages = [
        [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i * i}"}]
        for i in range(4)
    ]
    dataset = datasets.Dataset.from_list(
        [
            {"prompt": turns[:1], "completion": turns[1:], "weight": w}
            for turns, w in zip(messages, [1, 2, 0, 5], strict=True)
        ]
    )
    trainer = WeightedSFTTrainer(
        model=new_model(), args=arguments(tmp_path, "sft", max_steps=1), train_dataset=dataset,
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    (batch, again) = list(trainer.get_train_dataloader())
    weights = torch.cat([batch["weight"], again["weight"]])
    assert sorted((weights * 8 / 3).tolist()) == pytest.approx([0, 1, 2, 5])  # the mean of 1, 2 and 5 is 8 / 3
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("kind", [transformers.Trainer, trl.SFTTrainer])
def test_weights_go_with_choosing_inside_training(kind: Any, tmp_path: Path) -> None:
    """Those kept of a batch are trained on with their own weights, of mean 1 over all rows."""

    class Both(BatchSelectionMixin, WeightedLossMixin, kind):  # type: ignore[misc, valid-type]
        pass

    rows, weights = rows_of(LENGTHS, [w + 0.5 for w in WEIGHTS]), [w + 0.5 for w in WEIGHTS]
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 1}
    more: dict[str, Any] = {"processing_class": tiny_tokenizer()}
    if kind is transformers.Trainer:
        more = {"data_collator": DataCollatorForSeq2Seq(tiny_tokenizer())}
    trainer = Both(
        model=new_model(), args=arguments(tmp_path, "sft" if kind is trl.SFTTrainer else "transformers", **sizes),
        train_dataset=datasets.Dataset.from_list(rows), batch_selection=RandomBatch(prune=0.5), **more,
    )  # fmt: skip
    trainer.train()
    kept = trainer.batch_selection.last.indices
    assert len(kept) == 4
    by_hand = written_out(
        new_model(), [rows[i] for i in kept], [weights[i] for i in kept], steps=1, mean=float(np.mean(weights))
    )
    assert_same(trainer.model, by_hand)


# --- what goes wrong is said


def build(rows: Any, folder: Path, kind: str = "transformers", **changes: Any) -> Any:
    dataset = datasets.Dataset.from_list(rows) if isinstance(rows, list) else rows
    trainer = WeightedSFTTrainer if kind == "sft" else WeightedTrainer
    return trainer(
        model=new_model(), args=arguments(folder, kind, **changes), train_dataset=dataset,
        processing_class=tiny_tokenizer(),
    )  # fmt: skip


@pytest.mark.parametrize(("value", "shown"), [(-0.5, "-0.5"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_a_weight_that_cannot_be_is_an_error_with_its_row(value: float, shown: str, tmp_path: Path) -> None:
    rows = rows_of(LENGTHS, [*WEIGHTS[:3], value, *WEIGHTS[4:]])
    for kind in ("transformers", "sft"):
        with pytest.raises(DataError, match=f"row 3 of the training set has the weight {shown}"):
            build(rows, tmp_path, kind)


def test_no_weights_or_none_above_zero_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 0 of the training set has no 'weight'"):
        build(rows_of(LENGTHS, None), tmp_path)
    with pytest.raises(DataError, match="all 8 weights are 0"):
        build(rows_of(LENGTHS, [0.0] * 8), tmp_path)
    with pytest.raises(DataError, match="not all numbers"):
        build([{**row, "weight": "much"} for row in rows_of(LENGTHS, None)], tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"packing": True, "packing_strategy": "wrapped"}, "packing does not go with weighted losses"),
        ({"padding_free": True}, "padding_free does not go"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor does not go"),
        ({"loss_type": "dft"}, "loss_type does not go"),
    ],
)
def test_what_does_not_go_with_weights_is_refused_with_a_reason(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    if "packing" in changes:
        changes = {**changes, "max_length": 64}
    rows = datasets.Dataset.from_list(rows_of(LENGTHS, WEIGHTS))
    args = trl.SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False,
        **{"max_length": None, **changes},
    )  # fmt: skip
    with pytest.raises(SettingsError, match=named):
        WeightedSFTTrainer(model=new_model(), args=args, train_dataset=rows, processing_class=tiny_tokenizer())


def test_a_streamed_data_set_is_refused(tmp_path: Path) -> None:
    stream = datasets.Dataset.from_list(rows_of(LENGTHS, WEIGHTS)).to_iterable_dataset()
    with pytest.raises(SettingsError, match="streamed"):
        build(stream, tmp_path)


def test_a_collator_that_joins_rows_is_an_error(tmp_path: Path) -> None:
    def joined(examples: list[Row]) -> Row:
        return {name: torch.tensor([[i for e in examples for i in e[name]]]) for name in ("input_ids", "labels")}

    trainer = WeightedTrainer(
        model=new_model(), args=arguments(tmp_path, "transformers"), data_collator=joined,
        train_dataset=datasets.Dataset.from_list(rows_of(LENGTHS, WEIGHTS)),
    )  # fmt: skip
    with pytest.raises(DataError, match="every example must stay a row"):
        trainer.train()
