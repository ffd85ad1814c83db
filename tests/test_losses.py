"""Losses with the head apart from the body are those of the model, and few logits stand in memory at once."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pursuit.errors import ModelError
from pursuit.gradients import example_gradients, losses, trainable_parameters
from pursuit.gradients.losses import example_losses, token_losses
from pursuit.gradients.split import split_model
from test_gradients import batch_of, one_at_a_time, random_examples, relative_error, with_lora
from tiny import CONFIGS, VOCABULARY, tiny_model

LENGTHS = [5, 17, 2, 9, 30]


def head_outputs(model):
    """The shapes of all logits that the model makes from now on."""
    shapes = []
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    return shapes


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_and_gradients_are_those_of_the_model_itself(kind, side, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 4 * VOCABULARY)
    model = with_lora(kind).eval()
    rows = random_examples(LENGTHS)
    found, places = token_losses(model, batch_of(rows, side))
    whole, same_places = token_losses(model, batch_of(rows, side), head_apart=False)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(places, same_places)
    alone = [model(input_ids=ids[None], labels=labels[None]).loss.item() for ids, labels in rows]
    torch.testing.assert_close(example_losses(model, batch_of(rows, side)), torch.tensor(alone), rtol=1e-5, atol=1e-5)
    assert relative_error(example_gradients(model, batch_of(rows, side)), one_at_a_time(model, rows)) <= 1e-5


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_of_a_whole_batch_are_those_of_one_graph(kind, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 7 * VOCABULARY)
    model = with_lora(kind).eval()
    parameters = list(trainable_parameters(model).values())
    weights, batch = torch.tensor([0.3, 1.7, 0.0, 5.0, 1.0]), batch_of(random_examples(LENGTHS))
    found = []
    for apart in (True, False):
        loss = (weights * example_losses(model, batch, head_apart=apart)).sum()
        found.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)]))
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-6


def test_logits_are_made_of_labelled_tokens_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", 6 * VOCABULARY)
    model = with_lora("llama")
    shapes = head_outputs(model)
    rows = random_examples(LENGTHS)
    labelled = sum(int((labels[1:] != -100).sum()) for _, labels in rows)
    for work in (token_losses, example_gradients):
        shapes.clear()
        work(model, batch_of(rows))
        assert max(shape[0] * shape[1] for shape in shapes) <= 6
        assert sum(shape[1] for shape in shapes) == labelled


def test_a_model_is_as_it_was_afterwards():
    model = with_lora("gemma2").eval()
    ids = torch.arange(3, 12)[None]
    before = model(input_ids=ids).logits
    token_losses(model, batch_of(random_examples(LENGTHS)))
    assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in vars(split_model(model).body)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_trained_above_the_body_get_their_gradients(tied):
    model = tiny_model("llama", tie_word_embeddings=tied)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "model.embed_tokens.weight" if tied else name == "lm_head.weight")
    rows = random_examples(LENGTHS)
    assert split_model(model).trains_head()
    (trained,) = trainable_parameters(model).values()
    (found,) = torch.autograd.grad(example_losses(model, batch_of(rows)).sum(), trained)
    expected = one_at_a_time(model, rows).sum(dim=0)
    assert relative_error(found.flatten()[None], expected[None]) < 1e-5
    assert relative_error(example_gradients(model, batch_of(rows)), one_at_a_time(model, rows)) <= 1e-5


def test_an_adapter_on_the_head_is_trained_too():
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    rows = random_examples(LENGTHS)
    assert relative_error(example_gradients(model, batch_of(rows)), one_at_a_time(model, rows)) <= 1e-5


def test_a_head_that_does_not_follow_its_body_is_refused():
    model = tiny_model("llama")
    split = split_model(model)
    split.hidden(batch_of(random_examples([4])))
    split.body = torch.nn.Identity()
    with pytest.raises(ModelError, match="Identity"):
        split.logits(torch.zeros(2, 32))


def test_what_is_no_language_model_has_no_parts():
    assert split_model(torch.nn.Linear(2, 2)) is None
