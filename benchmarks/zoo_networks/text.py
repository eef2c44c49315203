"""Architectures of `transformers` for text: encoders and decoders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers as hf
from torch import nn

from zoo_networks.network import Called, Network, tokens

_LENGTH = 16
_SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_ENCODER = {**_SMALL, "max_position_embeddings": 64}
_DECODER = {
    **_ENCODER,
    "num_key_value_heads": 2,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _encoder(name: str, family: str, task: str = "ForSequenceClassification", **options: Any) -> Network:
    def make() -> nn.Module:
        return getattr(hf, f"{family}{task}")(getattr(hf, f"{family}Config")(**{**_ENCODER, **options}))

    return Network(name, "text encoder", make, tokens(_LENGTH))


def _decoder(name: str, family: str, task: str = "ForCausalLM", **options: Any) -> Network:
    def make() -> nn.Module:
        model = getattr(hf, f"{family}{task}")(getattr(hf, f"{family}Config")(**{**_DECODER, **options}))
        return Called(model, "input_ids", use_cache=False)

    return Network(name, "decoder", make, tokens(_LENGTH))


def networks() -> Iterator[Network]:
    yield from _encoders()
    yield from _decoders()


def _encoders() -> Iterator[Network]:
    yield _encoder("bert", "Bert")
    yield _encoder("distilbert", "DistilBert", dim=48, n_layers=2, n_heads=4, hidden_dim=96)
    yield _encoder("roberta", "Roberta")
    yield _encoder("albert", "Albert", embedding_size=24)
    yield _encoder("electra", "Electra", embedding_size=24)
    yield _encoder(
        "deberta-v2", "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False
    )
    yield _encoder("mpnet", "MPNet")
    yield _encoder("squeezebert", "SqueezeBert", embedding_size=48)
    yield _encoder("fnet", "FNet")
    yield _encoder("mobilebert", "MobileBert", embedding_size=24, intra_bottleneck_size=24, intermediate_size=48)
    yield _encoder(
        "modernbert", "ModernBert", pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    )
    yield _encoder("convbert", "ConvBert", embedding_size=24)
    yield _encoder("nystromformer", "Nystromformer", num_landmarks=16, segment_means_seq_len=16)
    yield _encoder("t5-encoder", "T5", task="EncoderModel", d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4)


def _decoders() -> Iterator[Network]:
    yield _decoder("gpt2", "GPT2", task="LMHeadModel", n_embd=48, n_layer=2, n_head=4, n_positions=64)
    yield _decoder(
        "gpt-neo", "GPTNeo", num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8
    )
    yield _decoder("gpt-neox", "GPTNeoX")
    yield _decoder("gptj", "GPTJ", n_embd=48, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    yield _decoder("opt", "OPT", ffn_dim=96, word_embed_proj_dim=48)
    yield _decoder("bloom", "Bloom", n_layer=2, n_head=4)
    yield _decoder("llama", "Llama")
    yield _decoder("mistral", "Mistral")
    yield _decoder("qwen2", "Qwen2")
    yield _decoder("gemma", "Gemma", head_dim=12)
    yield _decoder("phi", "Phi")
    yield _decoder("falcon", "Falcon")
    yield _decoder(
        "stablelm",
        "StableLm",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    yield _decoder("mamba", "Mamba", state_size=8, expand=2, use_mambapy=False)
    yield _decoder("olmo", "Olmo")
    yield _decoder("starcoder2", "Starcoder2")
