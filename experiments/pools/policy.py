"""A small language model for text games, to be trained from nothing: on it, which rows were chosen shows in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pursuit.pool import Pool

VOCABULARY = 1024
LAYOUTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "intermediate_size": 344, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
        "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def make_policy(
    pool: Path | Sequence[Path], out: Path, seed: int = 0, *, architecture: str = "llama", vocabulary: int = VOCABULARY
) -> Path:  # fmt: skip
    """Write random weights (a Llama's 0.9 million, or another layout's) and a tokenizer made from the pool's words."""
    tokenizer = _tokenizer(pool, vocabulary)
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": None, **ends, **LAYOUTS[architecture]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def _tokenizer(pool: Path | Sequence[Path], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level pairs, merged by how often they stand together in the pool."""
    texts = [message.content for example in Pool(pool) for message in example.messages or ()]
    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<end>", "<user>", "<assistant>", "<system>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
