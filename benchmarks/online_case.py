"""What batch selection is measured on: a random Llama with rows of Markov chains, or a model's folder with a pool."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pursuit.online import take
from pursuit.online.base import BatchSelector

Batch = dict[str, Tensor]
VOCABULARY = 8192


def random_llama() -> nn.Module:
    """14M weights in products, 3M of them in the head."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=384, num_hidden_layers=6, intermediate_size=1024, num_attention_heads=6, num_key_value_heads=6,
        vocab_size=VOCABULARY, max_position_embeddings=512, tie_word_embeddings=False, use_cache=False,
    ))  # fmt: skip


def markov_rows(count: int, length: int = 128, sources: int = 12, seed: int = 0) -> list[list[int]]:
    """Rows of token chains, each of one source; sources differ in vocabulary and in how predictable they are."""
    generator = np.random.default_rng(seed)
    words = [generator.integers(3, VOCABULARY, 64) for _ in range(sources)]
    odds = [generator.dirichlet(np.full(64, 0.02 * 1.5**source), size=64) for source in range(sources)]
    rows = []
    for _ in range(count):
        source, state = int(generator.integers(sources)), 0
        row = []
        for _ in range(length):
            state = int(generator.choice(64, p=odds[source][state]))
            row.append(int(words[source][state]))
        rows.append(row)
    return rows


def batch_of(rows: list[list[int]], prompts: list[int], ids: list[int]) -> Batch:
    """Padded on the right; prompts are not learnt from."""
    longest = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        tokens[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        labels[place, prompt : len(row)] = tokens[place, prompt : len(row)]
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels, "example_ids": torch.tensor(ids)}


class Case:
    """A model, batches of candidates and an optimizer."""

    def __init__(self, arguments: argparse.Namespace, lora: bool) -> None:
        torch.manual_seed(0)
        if arguments.model is None:
            model: Any = random_llama()
            rows, prompts = markov_rows(64), [arguments.prompt] * 64
        else:
            model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
            rows, prompts = pool_rows(arguments)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, target_modules=targets)) if lora else model
        self.model = model.train().to(arguments.device, getattr(torch, arguments.dtype))
        self.name = f"{Path(arguments.model or 'random Llama').name}, {'LoRA' if lora else 'full'}"
        size = arguments.batch
        self.batches = [
            {key: value.to(arguments.device) for key, value in
             batch_of(rows[i : i + size], prompts[i : i + size], list(range(i, i + size))).items()}
            for i in range(0, len(rows) - size + 1, size)
        ]  # fmt: skip
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3 if lora else 1e-4)

    def forward(self, batch: Batch) -> None:
        """All candidates without graph, as an evaluation would run them."""
        self.model.eval()
        with torch.no_grad():
            self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        self.model.train()

    def learn(self, batch: Batch, observer: Callable[[nn.Module], None] | None = None) -> None:
        """One step on all of `batch`."""
        self.model(**{key: value for key, value in batch.items() if key != "example_ids"}).loss.backward()
        if observer is not None:
            observer(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def selected(self, batch: Batch, selector: BatchSelector) -> None:
        """One step on what the selector keeps."""
        self.learn(take(batch, selector(self.model, batch)), selector.observe)


def pool_rows(arguments: argparse.Namespace) -> tuple[list[list[int]], list[int]]:
    """Rows of a JSONL file with messages, at most 192 tokens each, the last message being learnt."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows, prompts = [], []
    for line in Path(arguments.pool).read_text().splitlines()[: 8 * arguments.batch]:
        messages = json.loads(line)["messages"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        ids, start = tokenizer(text)["input_ids"][:192], len(tokenizer(prompt)["input_ids"])
        if start < len(ids):
            rows.append(ids)
            prompts.append(start)
    return rows, prompts
