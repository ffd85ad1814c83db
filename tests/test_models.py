from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pursuit.errors import ModelError
from pursuit.models import loading
from pursuit.models.loading import (
    Lora,
    checkpoint_dtype,
    load_model,
    load_tokenizer,
    lora_targets,
    model_fingerprint,
    parameter_count,
    prepare_trainable,
    settled_dtype,
    trainable_parameters,
)
from tiny import CONFIGS, tiny_model, tiny_tokenizer

ATTENTION = {
    "llama": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "qwen2": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "gemma2": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "opt": ["k_proj", "out_proj", "q_proj", "v_proj"],
    "gpt2": ["attn.c_proj", "c_attn"],
    "gpt_neox": ["dense", "query_key_value"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama saved as a user would have it."""
    place = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def copy_of(folder: Path, place: Path) -> Path:
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


# --- loading


def test_a_folder_gives_back_the_model_that_was_saved(folder: Path) -> None:
    saved, loaded = tiny_model("llama").state_dict(), load_model(folder).state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_dtype_is_float32_on_a_cpu_unless_asked_otherwise(folder: Path, tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").dtype == torch.float32
    assert load_model(folder, device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_a_tokenizer_without_padding_token_pads_with_eos(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path).pad_token == "</s>"


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """The tiny Llama as a GGUF file, with the layout that llama.cpp gives it."""
    import gguf

    config, tokenizer = model.config, tiny_tokenizer()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    description = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(description["vocab"], key=lambda token: description["vocab"][token])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in description["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for ours, theirs in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if ours in name:  # llama.cpp keeps the two halves of rotary pairs next to each other
                values = values.reshape(theirs, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, str(theirs))
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_or_a_folder_with_one_gives_dense_trainable_weights(tmp_path: Path) -> None:
    model = tiny_model("llama")
    write_gguf(model, tmp_path / "tiny.gguf")
    tokens = torch.tensor([[1, 40, 50, 60, 70]])
    for name in (tmp_path, tmp_path / "tiny.gguf"):
        loaded = load_model(name)
        assert torch.allclose(loaded(tokens).logits, model(tokens).logits, atol=1e-5)
        assert parameter_count(prepare_trainable(loaded)) > 0
    text = "The capital of France"
    assert load_tokenizer(tmp_path)(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert model_fingerprint(tmp_path)["files"].keys() == {"tiny.gguf"}
    write_gguf(model, tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"other\.gguf, tiny\.gguf"):
        load_model(tmp_path)


# --- what cannot be loaded is said, with how to go on


def test_names_that_are_neither_folder_nor_hub_id_are_refused_at_once() -> None:
    for name in ("./no/such/folder", "/no/such/folder", "a/b/c"):
        with pytest.raises(ModelError, match="no such folder"):
            load_model(name)


def test_an_unreachable_hub_says_that_a_local_folder_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_model, load_tokenizer, model_fingerprint):
        with pytest.raises(ModelError, match="local folder"):
            load("nobody/no-such-model")
    with pytest.raises(ModelError, match="local folder"):
        prepare_trainable(tiny_model("llama"), adapter="nobody/no-such-adapter")


def test_folders_that_hold_no_usable_model_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="base model"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="another kind of file"):
        load_model(folder / "config.json")
    with pytest.raises(ModelError, match="dtype"):
        load_model(folder, dtype="float8")
    with pytest.raises(ModelError, match="device"):
        load_model(folder, device="cuda:99")
    with pytest.raises(ModelError, match="not known"):
        load_model(folder, device="gpu")


def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path, tmp_path: Path) -> None:
    place = copy_of(folder, tmp_path / "pickled")
    (place / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no .*safetensors"):
        load_model(place)
    torch.save(tiny_model("llama").state_dict(), place / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Convert them once"):
        load_model(place)


def test_damaged_and_incomplete_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    place = copy_of(folder, tmp_path / "damaged")
    weights = place / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(place)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj"):
        load_model(place)


def test_a_folder_without_tokenizer_says_how_to_get_one(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="save_pretrained"):
        load_tokenizer(tmp_path)


def test_code_that_a_model_brings_along_is_not_run_unless_asked(folder: Path, tmp_path: Path) -> None:
    place = copy_of(folder, tmp_path / "custom")
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(place)
    assert not (tmp_path / "ran").exists()


# --- what is trained


@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_adapts_the_attention_projections_and_nothing_else(kind: str) -> None:
    model = tiny_model(kind)
    assert lora_targets(model) == ATTENTION[kind]
    adapted = prepare_trainable(model, lora=Lora(rank=2, alpha=4))
    names = trainable_parameters(adapted)
    assert all("attn" in name or "attention" in name for name in names)
    assert not any("mlp" in name or "base_model" in name or "default" in name for name in names)
    layers = {name.split(".lora_")[0] for name in names}
    assert {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"} == set(names)
    assert all(name in dict(tiny_model(kind).named_modules()) for name in layers)
    assert parameter_count(adapted) == sum(parameter.numel() for parameter in names.values())


def test_a_model_without_attention_names_its_layers_instead() -> None:
    with pytest.raises(ModelError, match="gate, up"):
        lora_targets(nn.ModuleDict({"up": nn.Linear(2, 2), "gate": nn.Linear(2, 2)}))


def test_targets_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match="do not fit"):
        prepare_trainable(tiny_model("llama"), lora=Lora(targets=("no_such_layer",)))


def test_a_new_lora_depends_on_its_seed_alone_and_changes_no_output() -> None:
    tokens = torch.tensor([[1, 40, 50, 60]])

    def fresh(seed: int, noise: int) -> dict[str, nn.Parameter]:
        model = tiny_model("llama")
        before = model(tokens).logits
        torch.manual_seed(noise)
        adapted = prepare_trainable(model, lora=Lora(rank=4), seed=seed)
        assert torch.equal(adapted(tokens).logits, before)
        return trainable_parameters(adapted)

    first, again, other = fresh(0, noise=1), fresh(0, noise=2), fresh(1, noise=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    bound = 1 / 32**0.5  # peft's own: Kaiming uniform with a = √5 over 32 inputs
    values = torch.cat([first[name].detach().flatten() for name in first if "lora_A" in name])
    assert values.abs().max() <= bound
    assert abs(float(values.std()) - bound / 3**0.5) < 0.02


def test_a_saved_adapter_loads_as_the_same_trainable_parameters(tmp_path: Path) -> None:
    adapted = prepare_trainable(tiny_model("gpt2"), lora=Lora(rank=3, alpha=6))
    with torch.no_grad():
        for parameter in trainable_parameters(adapted).values():
            parameter.normal_()
    adapted.save_pretrained(tmp_path)
    loaded = prepare_trainable(tiny_model("gpt2"), adapter=tmp_path)
    saved = trainable_parameters(adapted)
    assert trainable_parameters(loaded).keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trainable_parameters(loaded).items())


def test_adapters_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        prepare_trainable(tiny_model("llama"), adapter=tmp_path)
    prepare_trainable(tiny_model("gpt2"), lora=Lora(rank=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="made for this model"):
        prepare_trainable(tiny_model("llama"), adapter=tmp_path)


def test_named_weights_are_trained_and_all_others_frozen() -> None:
    model = prepare_trainable(tiny_model("llama"), weights=["model.layers.1.mlp.*", "lm_head.weight"])
    assert list(trainable_parameters(model)) == [
        "lm_head.weight", "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"no\.such\.\*.*lm_head\.weight"):
        prepare_trainable(tiny_model("llama"), weights=["no.such.*"])
    with pytest.raises(ModelError, match="only one"):
        prepare_trainable(tiny_model("llama"), weights=["*"], lora=Lora())


def test_lora_stays_float32_in_a_bfloat16_model() -> None:
    adapted = prepare_trainable(tiny_model("llama").to(torch.bfloat16), lora=Lora(rank=2))
    assert {parameter.dtype for parameter in trainable_parameters(adapted).values()} == {torch.float32}


# --- identity


def test_a_fingerprint_is_of_the_contents_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    place = copy_of(folder, tmp_path / "elsewhere")
    first = model_fingerprint(folder)
    assert model_fingerprint(place) == first
    assert json.loads(json.dumps(first)) == first
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    changed = model_fingerprint(place)
    assert changed["digest"] != first["digest"]
    differing = {name for name in first["files"] if changed["files"][name] != first["files"][name]}
    assert differing == {"model.safetensors"}


def test_the_data_type_that_a_checkpoint_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bfloat16", "float16", "float32"):
        tiny_model("llama").to(getattr(torch, name)).save_pretrained(tmp_path / name)
        assert checkpoint_dtype(tmp_path / name) == name
    assert settled_dtype(tmp_path / "bfloat16", "auto", "cpu") == "float32"
    assert settled_dtype(tmp_path / "bfloat16", "float16", "cpu") == "float16"
    monkeypatch.setattr(loading, "find_device", lambda name: torch.device("cuda"))  # as on a GPU
    assert settled_dtype(tmp_path / "bfloat16", "auto", "cuda") == "bfloat16"
    assert settled_dtype(tmp_path / "float16", "auto", "cuda") == "bfloat16"  # its gradients would be zero where small
    assert settled_dtype(tmp_path / "float32", "auto", "cuda") == "float32"
