"""Fine-tuning on chosen rows: equal to a plain loop, complete on disk, the same bits again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from pursuit.errors import ModelError, SettingsError
from pursuit.finetune import FineTune, Finetuned, finetune
from pursuit.models.loading import Lora, load_model, prepare_trainable, trainable_parameters
from pursuit.online import BatchSelector, Choice, FullBatch, OptBatch
from pursuit.selectors import Selection
from pursuit.training.plan import BatchPlan
from test_trajectory import Rows
from tiny import tiny_model

PLAIN = Lora(rank=4, alpha=16, dropout=0.0)


def short(**changes: Any) -> FineTune:
    return FineTune(**{"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "micro_batch_tokens": 100, **changes})


def new_model(trains: str = "lora", kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    model = tiny_model(kind).to(dtype)
    if trains == "lora":
        return prepare_trainable(model, lora=PLAIN)
    return prepare_trainable(model, weights=["*"] if trains == "full" else ["model.layers.1.mlp.*"])


def chosen(*indices: int, weights: list[float] | None = None, pool: int = 30) -> Selection:
    given = np.ones(len(indices)) if weights is None else np.array(weights)
    return Selection(np.array(indices), given, method="random", num_rows=pool)


def plain_loop(model: Any, rows: Rows, recipe: FineTune, indices: list[int], weights: dict[int, float]) -> list[float]:
    """The training written out: one unpadded row at a time, torch's AdamW, a linear schedule; losses of the steps."""
    model.train()
    parameters = list(trainable_parameters(model).values())
    steps_an_epoch = -(-len(indices) // recipe.batch_size)
    steps = recipe.max_steps or recipe.epochs * steps_an_epoch
    ordered = np.array(sorted(indices))
    plan = BatchPlan(ordered, recipe.batch_size, recipe.seed, last_step=steps, planned_steps=steps, warmup_ratio=0.0)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * (steps - step) / steps
        optimizer.zero_grad()
        batch = [int(row) for row in plan.batch(step)]
        count = sum(int(rows[row][1][1:].sum()) for row in batch)
        total = torch.zeros(())
        for row in batch:
            tokens, response = rows[row]
            ids = torch.from_numpy(tokens.astype(np.int64))
            logits = model(input_ids=ids[None]).logits[0, :-1]
            learnt = torch.from_numpy(response[1:])
            total = total + weights[row] * cross_entropy(logits[learnt], ids[1:][learnt], reduction="sum") / count
        total.backward()
        losses.append(total.item())
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
    return losses


def assert_close(first: Any, second: Any) -> None:
    others = trainable_parameters(second)
    for name, parameter in trainable_parameters(first).items():
        assert torch.allclose(parameter, others[name], rtol=1e-3, atol=2e-5), name


def saved(folder: Path) -> dict[str, bytes]:
    """The bytes of the trained weights."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


# --- it trains as a plain loop does


@pytest.mark.parametrize("trains", ["lora", "full", "named"])
def test_weights_and_losses_equal_a_plain_training_loop(trains: str, tmp_path: Path) -> None:
    rows, recipe = Rows(20), short(warmup_ratio=0.0)
    model, by_hand = new_model(trains), new_model(trains)
    done = finetune(model, rows, tmp_path, recipe)
    losses = plain_loop(by_hand, rows, recipe, list(range(20)), dict.fromkeys(range(20), 1.0))
    assert np.allclose(done.losses, losses, rtol=1e-4)
    assert_close(model, by_hand)
    assert (done.steps, done.epochs, done.examples, done.rows) == (6, 2.0, 40, 20)
    assert done.tokens == 2 * int(rows.lengths.sum())


def test_a_weighted_selection_equals_a_plain_loop(tmp_path: Path) -> None:
    rows, recipe = Rows(30), short(warmup_ratio=0.0, weighted=True)
    selection = chosen(17, 3, 8, 25, 11, 29, 0, 14, 5, 21, weights=[4, 1, 0, 0.5, 2, 9, 1, 0.25, 3, 0.1])
    model, by_hand = new_model(), new_model()
    finetune(model, rows, tmp_path, recipe, selection=selection)
    used = {int(i): float(w) for i, w in zip(selection.indices, selection.weights, strict=True) if w > 0}
    mean = np.mean(list(used.values()))
    plain_loop(by_hand, rows, recipe, list(used), {row: weight / mean for row, weight in used.items()})
    assert_close(model, by_hand)


def test_the_loss_falls(tmp_path: Path) -> None:
    done = finetune(new_model(), Rows(8), tmp_path, short(epochs=12, schedule="constant"))
    assert done.losses[-1] < 0.9 * done.losses[0]


def test_equal_weights_give_the_bits_of_none(tmp_path: Path) -> None:
    rows = Rows(20)
    for name, recipe, weights in (("none", short(), None), ("ones", short(weighted=True), np.ones(20))):
        finetune(new_model(), rows, tmp_path / name, recipe, weights=weights)
    assert saved(tmp_path / "none") == saved(tmp_path / "ones")


def test_only_which_rows_are_chosen_counts_not_their_order(tmp_path: Path) -> None:
    rows, few = Rows(30), [4, 9, 2, 27, 16, 11]
    for name, indices in (("one", few), ("other", few[::-1])):
        finetune(new_model(), rows, tmp_path / name, short(), selection=chosen(*indices))
    assert saved(tmp_path / "one") == saved(tmp_path / "other")


def test_rows_of_weight_zero_are_as_if_not_chosen(tmp_path: Path) -> None:
    rows, recipe = Rows(30), short(weighted=True)
    finetune(new_model(), rows, tmp_path / "with", recipe, selection=chosen(4, 9, 2, 27, weights=[1, 3, 0, 2]))
    finetune(new_model(), rows, tmp_path / "without", recipe, selection=chosen(4, 9, 27, weights=[1, 3, 2]))
    assert saved(tmp_path / "with") == saved(tmp_path / "without")


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9))
def test_equal_steps_for_any_subset(count: int, batch_size: int, steps: int) -> None:
    from pursuit.finetune.run import _plan

    plan = _plan(short(max_steps=steps, batch_size=batch_size), np.arange(count))
    assert (plan.last_step, plan.planned_steps) == (steps, steps)
    seen = np.concatenate([plan.batch(step) for step in range(steps)])
    counts = np.bincount(seen, minlength=count)
    assert counts.max() - counts.min() <= 1  # round and round


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd", "adagrad", "rmsprop"])
def test_other_optimizers_train(optimizer: str, tmp_path: Path) -> None:
    rate = {"sgd": 0.3, "adafactor": 0.03}.get(optimizer, 1e-2)
    recipe = short(epochs=8, optimizer=optimizer, learning_rate=rate, schedule="cosine")
    done = finetune(new_model(), Rows(8), tmp_path, recipe)
    assert done.losses[-1] < done.losses[0]


# --- choosing inside training


def test_leaving_nothing_out_gives_the_bits_of_training_on_all(tmp_path: Path) -> None:
    rows = Rows(20)
    finetune(new_model(), rows, tmp_path / "plain", short())
    for name, selection in (("full", FullBatch()), ("optbatch", OptBatch(prune=0.0))):
        finetune(new_model(), rows, tmp_path / name, short(), batch_selection=selection)
        assert saved(tmp_path / name) == saved(tmp_path / "plain")


class EverySecond(BatchSelector):
    """Keeps every second candidate, and weighs them up or not; notes what it is told."""

    name: ClassVar[str] = "every-second"
    paper: ClassVar[str] = "a test's"
    factor: float | None = None
    told: list[Any] = []  # noqa: RUF012  (pydantic copies it)

    def _drops(self, size: int, rate: float) -> bool:
        return True

    def _choose(self, model: Any, batch: Any, rate: float, ids: Any) -> Choice:
        order = np.arange(0, len(batch["input_ids"]), 2)
        return Choice(order, weights=None if self.factor is None else np.full(len(order), self.factor))

    def observe(self, model: Any) -> None:
        self.told.append(any(bool(p.grad.any()) for p in trainable_parameters(model).values()))

    def remember(self, ids: np.ndarray, losses: torch.Tensor) -> None:
        self.told.extend(zip(ids.tolist(), losses.tolist(), strict=True))


@pytest.mark.parametrize("factor", [None, 2.0])
def test_a_step_trains_on_what_is_kept_of_its_candidates(factor: float | None, tmp_path: Path) -> None:
    """Weighed up, the kept stand for all: their loss is divided by the tokens of all candidates."""
    rows, recipe = Rows(8, lengths=[4, 39, 7, 12, 30, 5, 21, 16]), short(max_steps=1)
    selector = EverySecond(factor=factor)
    done = finetune(new_model(), rows, tmp_path, recipe, batch_selection=selector)
    candidates = BatchPlan(np.arange(8), 8, 0, last_step=1, planned_steps=1, warmup_ratio=0.0).batch(0)
    kept = [int(row) for row in candidates[::2]]
    single = {
        row: finetune(new_model(), rows, tmp_path / str(row), recipe, selection=chosen(row, pool=8)) for row in kept
    }
    tokens = {row: int(rows[row][1][1:].sum()) for row in range(8)}
    sums = sum(single[row].losses[0] * tokens[row] for row in kept)
    divided = sum(tokens[row] for row in (kept if factor is None else range(8)))
    assert done.losses[0] == pytest.approx((factor or 1.0) * sums / divided, rel=1e-5)
    assert done.examples == 4
    assert selector.told[-1] is True  # it saw the gradient, after the losses
    assert dict(selector.told[:-1]) == pytest.approx({row: single[row].losses[0] for row in kept}, rel=1e-5)


# --- precision


def test_a_bfloat16_model_is_trained_in_float32_and_saved_as_it_came(tmp_path: Path) -> None:
    model, exact, start = new_model("full", dtype=torch.bfloat16), new_model("full"), new_model("full")
    recipe = short(learning_rate=1e-4, epochs=4)  # steps far below bfloat16's rounding of the weights
    assert finetune(model, Rows(16), tmp_path / "low", recipe).losses[-1] > 0
    finetune(exact, Rows(16), tmp_path / "exact", recipe)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    stored = load_model(tmp_path / "low", dtype="bfloat16", device="cpu")
    assert all(torch.equal(p, q) for p, q in zip(stored.parameters(), model.parameters(), strict=True))
    moved, wanted = (
        torch.cat([(p.float() - q).detach().flatten() for p, q in zip(m.parameters(), start.parameters(), strict=True)])
        for m in (model, exact)
    )
    assert float(torch.corrcoef(torch.stack([moved, wanted]))[0, 1]) > 0.2  # the way is the same, but for the rounding


def test_bfloat16_arithmetic_stays_near_float32(tmp_path: Path) -> None:
    rows = Rows(16)
    low = finetune(new_model(), rows, tmp_path / "low", short(precision="bfloat16"))
    exact = finetune(new_model(), rows, tmp_path / "exact", short())
    assert low.losses != exact.losses
    assert np.allclose(low.losses, exact.losses, rtol=0.02)


def test_precisions_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float16 needs loss scaling"):
        finetune(new_model(dtype=torch.float16), Rows(8), tmp_path, short())
    with pytest.raises(SettingsError, match="load it in float32"):
        finetune(new_model(dtype=torch.bfloat16), Rows(8), tmp_path, short(precision="float32"))


# --- what it leaves


# --- what goes wrong is said


def test_a_loss_that_is_not_a_number_stops_with_its_step(tmp_path: Path) -> None:
    model = new_model()
    with torch.no_grad():
        model.get_submodule("base_model.model.lm_head").weight[5] = float("nan")
    with pytest.raises(ModelError, match=r"fine-tuning step 1: the loss \(nan\)"):
        finetune(model, Rows(20), tmp_path, short())


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(tmp_path: Path) -> None:
    def limited(_module: object, arguments: tuple[torch.Tensor, ...]) -> None:
        if arguments[0].numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    tight, free = new_model(), new_model()
    tight.get_submodule("base_model.model.model.embed_tokens").register_forward_pre_hook(limited)
    first = finetune(tight, Rows(20), tmp_path / "tight", short())
    second = finetune(free, Rows(20), tmp_path / "free", short())
    assert np.allclose(first.losses, second.losses, rtol=1e-4)
    assert first.tokens == second.tokens


def test_candidates_are_scored_under_the_same_budget_which_is_halved_when_memory_runs_out(tmp_path: Path) -> None:
    def train_with(limit: float, name: str) -> tuple[Finetuned, list[int]]:
        scored: list[int] = []

        def limited(_module: object, arguments: tuple[torch.Tensor, ...]) -> None:
            if arguments[0].numel() > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            if not torch.is_grad_enabled():
                scored.append(arguments[0].numel())

        model = new_model()
        model.get_submodule("base_model.model.model.embed_tokens").register_forward_pre_hook(limited)
        return finetune(model, Rows(20), tmp_path / name, short(), batch_selection=OptBatch(prune=0.5)), scored

    (free, at_once), (tight, fewer) = train_with(1e9, "free"), train_with(60, "tight")
    assert max(at_once) <= 100  # micro_batch_tokens
    assert max(fewer) <= 60
    assert tight.examples == free.examples == 20  # half of two epochs
    assert np.allclose(tight.losses, free.losses, rtol=1e-3)
