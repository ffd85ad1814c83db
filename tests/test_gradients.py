"""Batched per-example gradients equal one-at-a-time autograd, on every architecture and however the batch is made."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoHaConfig, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig

from pursuit.errors import DataError, ModelError
from pursuit.gradients import example_gradients, trainable_parameters
from pursuit.gradients.capture import ExampleGradients
from pursuit.gradients.split import SplitModel
from tiny import CONFIGS, VOCABULARY, tiny_model

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"], "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gemma2": ["q_proj", "k_proj", "v_proj", "o_proj"], "opt": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "gpt2": ["c_attn", "attn.c_proj"], "gpt_neox": ["query_key_value", "dense"],
}  # fmt: skip


def with_lora(kind: str, bias: str = "none", dropout: float = 0.1, **overrides):
    model = tiny_model(kind, **overrides)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=TARGETS[kind], bias=bias)
    model = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide errors in A's gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_examples(lengths, seed=0):
    """Rows of (ids, labels); about half of the tokens labelled, at least the last one."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        learnt = torch.rand(length, generator=generator) < 0.5
        learnt[-1] = True
        rows.append((ids, torch.where(learnt, ids, -100)))
    return rows


def batch_of(rows, side="right"):
    longest = max(len(ids) for ids, _ in rows)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids, labels in rows:
        gap = longest - len(ids)
        pad = (0, gap) if side == "right" else (gap, 0)
        batch["input_ids"].append(torch.nn.functional.pad(ids, pad, value=0))
        batch["attention_mask"].append(torch.nn.functional.pad(torch.ones_like(ids), pad, value=0))
        batch["labels"].append(torch.nn.functional.pad(labels, pad, value=-100))
    return {key: torch.stack(values) for key, values in batch.items()}


def one_at_a_time(model, rows):
    """Plain autograd on Hugging Face's own loss, one unpadded example at a time."""
    model.eval()
    found = []
    for ids, labels in rows:
        model.zero_grad()
        model(input_ids=ids[None], labels=labels[None]).loss.backward()
        found.append(torch.cat([
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten().clone()
            for p in trainable_parameters(model).values()
        ]))  # fmt: skip
    model.zero_grad()
    return torch.stack(found)


def relative_error(found, expected):
    return ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_gradients_equal_autograd(kind, side):
    model = with_lora(kind)
    rows = random_examples([5, 17, 2, 9])
    assert relative_error(example_gradients(model, batch_of(rows, side)), one_at_a_time(model, rows)) <= 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen2"])
def test_biases_are_captured(kind):
    model = with_lora(kind, bias="lora_only")
    assert any(name.endswith("bias") for name in trainable_parameters(model))
    rows = random_examples([4, 11])
    assert relative_error(example_gradients(model, batch_of(rows)), one_at_a_time(model, rows)) <= 1e-5


def test_dora_gradients_equal_autograd():
    """Its magnitudes scale what LoRA adds, outside of the layers that hold A and B."""
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert any("magnitude" in name for name in trainable_parameters(model))
    rows = random_examples([5, 17, 9])
    assert relative_error(example_gradients(model, batch_of(rows)), one_at_a_time(model, rows)) <= 1e-5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_all_weights_of_the_model_itself(kind, tied):
    """Embeddings, norms, biases and tied heads too."""
    model = tiny_model(kind, tie_word_embeddings=tied)
    rows = random_examples([3, 8, 6])
    assert relative_error(example_gradients(model, batch_of(rows)), one_at_a_time(model, rows)) <= 1e-5


@given(
    lengths=st.lists(st.integers(2, 24), min_size=1, max_size=7),
    side=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 1000),
)
def test_any_batch_composition(lengths, side, seed):
    model = with_lora("llama")
    rows = random_examples(lengths, seed)
    assert relative_error(example_gradients(model, batch_of(rows, side)), one_at_a_time(model, rows)) <= 1e-5


def test_dropout_and_checkpointing_change_nothing_and_are_put_back():
    model = with_lora("llama", dropout=0.5)
    rows = random_examples([7, 12])
    expected = one_at_a_time(model, rows)
    model.train()
    model.get_base_model().gradient_checkpointing_enable()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    found = example_gradients(model, batch_of(rows))
    assert relative_error(found, expected) <= 1e-5
    assert model.training
    assert all(module.training for module in model.modules())
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_bf16_is_within_its_rounding():
    exact = with_lora("llama")
    rows = random_examples([9, 14, 20])
    expected = one_at_a_time(exact, rows)
    found = example_gradients(exact.to(torch.bfloat16), batch_of(rows))
    assert relative_error(found, expected) < 0.1  # bf16 keeps 8 bits; two layers of rounding
    cosine = torch.cosine_similarity(found, expected)
    assert cosine.min() > 0.995


def test_only_named_weights_and_nothing_below_them():
    model = tiny_model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp.down_proj" in name)
    rows = random_examples([6, 10])
    assert relative_error(example_gradients(model, batch_of(rows)), one_at_a_time(model, rows)) <= 1e-5


def test_an_example_without_labels_has_zero_gradient():
    model = with_lora("gpt2")
    rows = random_examples([6, 10])
    rows[0] = (rows[0][0], torch.full_like(rows[0][1], -100))
    found = example_gradients(model, batch_of(rows))
    assert not found[0].any()
    assert relative_error(found[1:], one_at_a_time(model, rows[1:])) <= 1e-5


def test_no_trainable_parameter_is_an_error():
    model = tiny_model("llama").requires_grad_(False)
    with pytest.raises(ModelError, match="LoRA"):
        example_gradients(model, batch_of(random_examples([4])))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])),
        ("llama", LoraConfig(r=4, target_modules=[], target_parameters=["self_attn.q_proj.weight"])),
        ("llama", LoHaConfig(r=4, target_modules=["q_proj"])),
    ],
)
def test_weights_that_hooks_do_not_see_are_refused_instead_of_zero(kind, config):
    """The loss depends on them, but not through a module of their own."""
    model = get_peft_model(tiny_model(kind), config)
    with pytest.raises(ModelError, match="hooks do not see"):
        example_gradients(model, batch_of(random_examples([6, 9])))


def test_experts_in_one_tensor_are_named_and_their_attention_goes():
    special = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = MixtralConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        **special,
    )
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    rows = random_examples([6, 9])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("experts" in name)
    with pytest.raises(ModelError, match=r"experts.*[Ll]eave these weights out"):
        example_gradients(model, batch_of(rows))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    assert relative_error(example_gradients(model, batch_of(rows)), one_at_a_time(model, rows)) <= 1e-5


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ({"labels": None}, "needs labels.*missing"), ({"attention_mask": None}, "needs attention_mask"),
        ({"input_ids": [[1, 2]]}, "input_ids.*list"), ({"labels": torch.ones(2, 3)}, "one shape"),
        ({"input_ids": torch.ones(3)}, "needs input_ids"),
    ],
)  # fmt: skip
def test_a_batch_of_another_kind_is_told_what_is_wrong(harm, said):
    batch = {name: value for name, value in {**batch_of(random_examples([6, 9])), **harm}.items() if value is not None}
    with pytest.raises(DataError, match=said):
        example_gradients(with_lora("llama"), batch)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("put_off", [5_000, 1 << 24])
def test_products_that_wait_for_others_equal_autograd(kind, put_off):
    """Of all weights, tied ones among them, which get several contributions."""
    model, rows = tiny_model(kind), random_examples([5, 17, 2, 9])
    found: dict[str, torch.Tensor] = {}
    gradients = ExampleGradients(model, put_off=put_off)
    gradients(batch_of(rows), lambda name, block: found.update({name: block.clone().flatten(1)}))
    expected = one_at_a_time(model, rows)
    assert relative_error(torch.cat([found[name] for name in gradients.parameters], dim=1), expected) <= 1e-5


def test_one_model_for_many_batches_as_for_one_each():
    """Weights that were changed between them are those that count, and the model is as it was after each."""
    model = with_lora("gpt2", dropout=0.5)
    gradients = ExampleGradients(model)
    for seed in range(3):
        rows, found = random_examples([5 + seed, 9], seed), {}
        model.train()
        gradients(batch_of(rows), lambda name, block: found.update({name: block.clone().flatten(1)}))  # noqa: B023
        assert all(module.training for module in model.modules())
        assert list(trainable_parameters(model)) == list(gradients.parameters)
        expected = one_at_a_time(model, rows)
        assert relative_error(torch.cat([found[name] for name in gradients.parameters], dim=1), expected) <= 1e-5
        with torch.no_grad():
            for parameter in gradients.parameters.values():
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_nothing_of_a_batch_is_kept_for_the_next(monkeypatch):
    """What a module was given hangs on the graph of what came of it: two batches' activations would stand in memory."""
    model, made, real = with_lora("llama"), [], SplitModel.hidden

    def hidden(self, batch):
        found = real(self, batch)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(SplitModel, "hidden", hidden)
    gradients = ExampleGradients(model)
    gc.disable()
    try:
        gradients(batch_of(random_examples([5, 9])), lambda *_: None)
    finally:
        gc.enable()
    assert len(made) == 1
    assert made[0]() is None
