"""Architectures of `transformers` for sound and for time series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers as hf
from torch import nn

from zoo_networks.network import Called, Network, floats

_SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 32,
}
_WAVE = {**_SMALL, "conv_dim": [16, 24], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 8,
         "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2, "apply_spec_augment": False}  # fmt: skip


def _wave(name: str, family: str, **options: Any) -> Network:
    def make() -> nn.Module:
        return getattr(hf, f"{family}ForCTC")(getattr(hf, f"{family}Config")(**{**_WAVE, **options}))

    return Network(name, "audio", make, floats(800))


def networks() -> Iterator[Network]:
    yield _wave("wav2vec2", "Wav2Vec2")
    yield _wave("wav2vec2-stable", "Wav2Vec2", do_stable_layer_norm=True, feat_extract_norm="layer")
    yield _wave("hubert", "Hubert")
    yield _wave("unispeech-sat", "UniSpeechSat")
    yield _wave("wavlm", "WavLM")
    yield _wave("sew", "SEW", squeeze_factor=2)
    yield _wave("data2vec-audio", "Data2VecAudio")
    yield Network("wav2vec2-conformer", "audio", lambda: hf.Wav2Vec2ConformerForCTC(hf.Wav2Vec2ConformerConfig(
        **_WAVE, conv_depthwise_kernel_size=7)), floats(800))  # fmt: skip
    yield Network("ast", "audio", lambda: hf.ASTForAudioClassification(hf.ASTConfig(
        **{key: value for key, value in _SMALL.items() if key != "vocab_size"}, patch_size=8, frequency_stride=8,
        time_stride=8, max_length=64, num_mel_bins=32)), floats(64, 32))  # fmt: skip
    yield Network("whisper-encoder", "audio", lambda: hf.WhisperForAudioClassification(hf.WhisperConfig(
        vocab_size=64, num_mel_bins=16, encoder_layers=2, encoder_attention_heads=4, decoder_layers=1,
        decoder_attention_heads=4, d_model=48, encoder_ffn_dim=96, decoder_ffn_dim=96, max_source_positions=32,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        classifier_proj_size=24)), floats(16, 64))  # fmt: skip
    yield Network("encodec", "audio", lambda: Called(hf.EncodecModel(hf.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16, upsampling_ratios=[4, 2], num_lstm_layers=1,
        target_bandwidths=[1.5])).encoder, "hidden_states"), floats(1, 256))  # fmt: skip
    yield from _series()


def _series() -> Iterator[Network]:
    size = {"num_input_channels": 3, "context_length": 64, "prediction_length": 16}
    yield Network("patchtst", "time series", lambda: Called(hf.PatchTSTForPrediction(hf.PatchTSTConfig(
        **size, patch_length=8, patch_stride=8, num_hidden_layers=2, d_model=48, num_attention_heads=4, ffn_dim=96,
        loss="mse")), "past_values"), floats(64, 3))  # fmt: skip
    yield Network("patchtsmixer", "time series", lambda: Called(hf.PatchTSMixerForPrediction(hf.PatchTSMixerConfig(
        **size, patch_length=8, patch_stride=8, num_layers=2, d_model=48, loss="mse")), "past_values"),
        floats(64, 3))  # fmt: skip
