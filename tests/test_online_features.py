"""What OptBatch knows of an example equals what autograd says about the lm_head's weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from online_batches import EIGHT, make_batch, materialised
from pursuit.errors import ModelError
from pursuit.online import OptBatch
from pursuit.online.head import find_head
from pursuit.online.row_norms import mean_gradient_squares
from pursuit.online.scorer import Scorer
from pursuit.online.scoring import labelled_hidden, undisturbed
from pursuit.online.sketch import make_sketch
from tiny import CONFIGS, VOCABULARY, tiny_model

SMALL_CHUNK = 2**12  # less than one example's logits: everything goes by columns


def scores_of(model: nn.Module, batch: dict[str, Tensor], chunk: int = 2**25, **more: Any) -> Any:
    return Scorer("grad_norm", 0, 0, chunk, None, None)(model, batch, find_head(model), **more)


def assert_equals_autograd(model: nn.Module, batch: dict[str, Tensor], chunk: int = 2**25) -> None:
    scores = scores_of(model, batch, chunk)
    for row in range(len(batch["labels"])):
        loss, gradient = materialised(model, batch, row)
        expected = gradient.norm(dim=1)
        assert scores.losses[row] == pytest.approx(loss, rel=1e-5)
        found = torch.from_numpy(scores.features[row])
        assert float(((found - expected).abs() / expected).max()) <= 1e-4


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_row_norms_are_those_of_the_materialised_gradient(kind: str, tied: bool, padding: str) -> None:
    model = tiny_model(kind, tie_word_embeddings=tied)
    assert find_head(model).tied is tied
    assert_equals_autograd(model, make_batch(padding=padding))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_row_norms_by_columns_are_the_same(kind: str) -> None:
    assert_equals_autograd(tiny_model(kind), make_batch(), SMALL_CHUNK)


def test_more_tokens_than_hidden_numbers() -> None:
    assert_equals_autograd(tiny_model("llama"), make_batch((90, 60)))  # hidden size 32


@pytest.mark.parametrize(
    ("kind", "more"),
    [("cohere", {"logit_scale": 0.5}), ("granite", {"logits_scaling": 4.0}), ("phi", {})],
    ids=["scaled", "divided", "with a bias"],
)
def test_scaled_and_biased_heads(kind: str, more: dict[str, Any]) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_key_value_heads=4,
        **shape, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    assert_equals_autograd(model, make_batch())


def test_a_soft_cap_that_bites() -> None:
    model = tiny_model("gemma2", final_logit_softcapping=2.0)
    assert_equals_autograd(model, make_batch())


def test_lora_on_the_head_counts_in_the_logits() -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"])
    model = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    scores, plain = scores_of(model, make_batch()), make_batch()
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in plain.items()}
        assert scores.losses[row] == pytest.approx(float(model(**one).loss.detach()), rel=1e-5)


def test_a_head_that_peft_copies_is_read_from_the_copy() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config).eval()
    head = find_head(model)
    assert head.weight.requires_grad
    nn.init.normal_(head.weight, std=0.3)
    loss = model(**{name: value[:1] for name, value in make_batch().items()}).loss
    assert scores_of(model, make_batch()).losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("chunk", [2**25, SMALL_CHUNK])
def test_the_moment_of_a_frozen_head_is_that_of_the_mean_gradient_of_all_chosen_tokens(kind: str, chunk: int) -> None:
    model = tiny_model(kind, tie_word_embeddings=False)
    batches = [make_batch(seed=1), make_batch((12, 20), seed=2)]
    head, parts, tokens, total = find_head(model), [], 0, torch.zeros(VOCABULARY, 32)
    for batch in batches:
        with undisturbed(model):
            found, _ = labelled_hidden(model, batch)
        scores = scores_of(model, batch, chunk)
        parts.append((found, scores.normalisers))
        for row, count in enumerate(found.counts):
            total += count * materialised(model, batch, row)[1]
            tokens += count
    expected = (total / tokens).square().mean(dim=1)
    torch.testing.assert_close(mean_gradient_squares(head, parts, chunk), expected, rtol=2e-4, atol=1e-12)


def test_the_moment_of_a_trained_head_is_read_from_its_gradient() -> None:
    model = tiny_model("llama", tie_word_embeddings=False).train()
    selector = OptBatch(prune=0.5, beta2=0.9)
    batch = make_batch()
    selector(model, batch)
    model(**batch).loss.backward()
    gradients = [model.lm_head.weight.grad.clone()]
    selector.observe(model)
    model.zero_grad()
    (3 * model(**batch).loss).backward()
    gradients.append(model.lm_head.weight.grad.clone())
    selector.observe(model)
    optimizer = torch.optim.Adam([model.lm_head.weight], betas=(0.9, 0.9))
    for gradient in gradients:
        model.lm_head.weight.grad = gradient
        optimizer.step()
    adams = optimizer.state[model.lm_head.weight]["exp_avg_sq"] / (1 - 0.9**2)
    scales = selector._moment.scales(1e-8, torch.device("cpu"))
    torch.testing.assert_close(scales, adams.mean(dim=1).sqrt() + 1e-8, rtol=1e-4, atol=0)


def test_features_are_row_norms_over_the_running_root_mean_square() -> None:
    model, batch = tiny_model("llama", tie_word_embeddings=False), make_batch()
    scales = torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(0)) + 0.1
    scaled = Scorer("second_moment", 0, 0, 2**25, None, None)(model, batch, find_head(model), scales)
    plain = scores_of(model, batch)
    torch.testing.assert_close(torch.from_numpy(scaled.features), torch.from_numpy(plain.features) / scales)


def test_squares_of_own_gradients_are_left_where_asked_for() -> None:
    model, batch = tiny_model("llama"), make_batch()
    squares = scores_of(model, batch, keep_rows=True).row_squares
    expected = torch.stack([materialised(model, batch, row)[1].square().mean(dim=1) for row in range(4)])
    torch.testing.assert_close(squares, expected, rtol=2e-4, atol=1e-12)


def test_the_embedding_is_the_mean_hidden_state_of_labelled_positions() -> None:
    model, batch = tiny_model("llama"), make_batch()
    found = Scorer("embedding", 0, 0, 2**25, None, None)(model, batch, find_head(model)).features
    hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    for row in range(4):
        expected = hidden[row, :-1][batch["labels"][row, 1:] != -100].mean(dim=0)
        torch.testing.assert_close(torch.from_numpy(found[row]), expected.detach())


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("feature", ["second_moment", "embedding"])
def test_candidates_scored_a_few_at_a_time_have_the_same_scores_in_their_own_order(padding: str, feature: Any) -> None:
    model, batch = tiny_model("llama"), make_batch(EIGHT, padding)
    scorer = Scorer(feature, 0, 0, 2**25, None, None)
    shapes: list[tuple[int, ...]] = []
    whole = scorer(model, batch, find_head(model))
    embed = model.get_input_embeddings()
    hook = embed.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    parts = scorer(model, batch, find_head(model), at_once=50)
    hook.remove()
    assert len(shapes) > 2
    assert all(rows * longest <= 50 for rows, longest in shapes)
    assert parts.tokens == sum(rows * longest for rows, longest in shapes)
    if padding == "right":  # like lengths go together, without the padding that the longest of all asks for
        assert parts.tokens < whole.tokens
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)
    np.testing.assert_allclose(parts.features, whole.features, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(parts.normalisers, whole.normalisers, rtol=1e-5)


def test_an_example_longer_than_what_goes_at_once_goes_alone() -> None:
    model, batch = tiny_model("llama"), make_batch(EIGHT)
    assert scores_of(model, batch, at_once=1).tokens == sum(EIGHT)


def test_a_shallower_exit_goes_through_the_same_norm_and_head() -> None:
    model, batch = tiny_model("gemma2"), make_batch()
    found = Scorer("grad_norm", 0, 0, 2**25, None, 1)(model, batch, find_head(model))
    shallow = tiny_model("gemma2", num_hidden_layers=1)
    shallow.load_state_dict(model.state_dict(), strict=False)
    assert found.losses[0] == pytest.approx(materialised(shallow, batch, 0)[0], rel=1e-5)
    assert len(model.model.layers) == 2


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_on_the_head_that_are_not_a_product_are_refused(more: dict[str, bool]) -> None:
    """Fresh ones change no logits, so that a comparison would find nothing until they are trained."""
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], **more)
    model = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config)
    with pytest.raises(ModelError, match="Use a plain LoRA there"):
        find_head(model)


def test_scores_in_bfloat16_are_near() -> None:
    model, batch = tiny_model("llama"), make_batch()
    exact = scores_of(model, batch)
    rough = Scorer("grad_norm", 0, 0, 2**25, "bfloat16", None)(model, batch, find_head(model))
    assert abs(rough.losses - exact.losses).max() < 0.1
    norms = [torch.from_numpy(s.features).norm(dim=1) for s in (rough, exact)]
    torch.testing.assert_close(norms[0], norms[1], rtol=0.05, atol=0)
    assert not torch.equal(norms[0], norms[1])


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 5))
def test_a_sketch_sums_every_input_once_and_depends_on_its_seed_alone(inputs: int, outputs: int, seed: int) -> None:
    cpu = torch.device("cpu")
    sketch = make_sketch(inputs, outputs, seed, cpu)
    if inputs <= outputs:
        assert sketch is None
        return
    assert sketch is not None
    torch.rand(3)  # uses of the global state in between change nothing
    again = make_sketch(inputs, outputs, seed, cpu)
    row = torch.arange(1.0, inputs + 1)
    assert torch.equal(sketch(row), again(row))  # type: ignore[misc]
    used = sketch.places[sketch.places < inputs]
    assert sorted(used.tolist()) == list(range(inputs))
    assert sketch(row).shape == (outputs,)


def test_a_sketch_keeps_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(12, 5000, generator=generator) ** 4
    sketch = make_sketch(5000, 512, 0, torch.device("cpu"))
    assert sketch is not None
    exact, kept = torch.pdist(rows), torch.pdist(torch.stack([sketch(row) for row in rows]))
    assert float((kept / exact - 1).abs().mean()) < 0.05  # √(2/512) / 2 ≈ 0.03 is to be expected


def test_a_model_that_does_more_to_its_logits_is_refused() -> None:
    class Tempered(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits**3
            return output

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = Tempered(LlamaConfig(vocab_size=VOCABULARY, **shape)).eval()
    with pytest.raises(ModelError, match="Tempered does something to its logits"):
        OptBatch(prune=0.5)(model, make_batch())


def test_a_model_without_a_head_is_refused_by_name() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    with pytest.raises(ModelError, match=r"LlamaModel has no output embeddings.*causal language modelling"):
        OptBatch(prune=0.5)(LlamaModel(LlamaConfig(vocab_size=VOCABULARY, **shape)), make_batch())
    with pytest.raises(ModelError, match="causal language model of transformers, not Linear"):
        OptBatch(prune=0.5)(nn.Linear(2, 2), make_batch())


def test_learnt_prompt_tokens_are_refused() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ModelError, match="learnt prompt tokens"):
        OptBatch(prune=0.5)(get_peft_model(tiny_model("llama"), config), make_batch())


def test_a_quantised_head_is_refused() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    model.lm_head.weight = nn.Parameter(torch.zeros(VOCABULARY, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match="cannot be read by rows of the vocabulary"):
        OptBatch(prune=0.5)(model, make_batch())


def test_losses_are_those_of_cross_entropy_over_a_large_vocabulary() -> None:
    model, batch = tiny_model("llama"), make_batch()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for row, loss in enumerate(scores_of(model, batch, SMALL_CHUNK).losses):
        assert loss == pytest.approx(float(F.cross_entropy(logits[row, :-1], batch["labels"][row, 1:])), rel=1e-5)
