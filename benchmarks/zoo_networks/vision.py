"""Architectures of `transformers` for images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers as hf
from torch import nn

from zoo_networks.network import Called, Network, images

_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
_VIT = {**_SMALL, "image_size": 32, "patch_size": 8}
_STAGES: dict[str, Any] = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}


def _classifier(
    name: str, family: str, size: int = 32, task: str = "ForImageClassification", **options: Any
) -> Network:
    def make() -> nn.Module:
        config = getattr(hf, f"{family}Config")(num_labels=10, **options)
        return getattr(hf, f"{family}{task}")(config)

    return Network(name, "vision", make, images(size))


def _model(name: str, family: str, size: int = 32, **options: Any) -> Network:
    def make() -> nn.Module:
        return getattr(hf, f"{family}Model")(getattr(hf, f"{family}Config")(**options))

    return Network(name, "vision", make, images(size))


def networks() -> Iterator[Network]:
    yield from _transformers()
    yield from _convolutional()
    yield from _dense()


def _transformers() -> Iterator[Network]:
    yield _classifier("vit", "ViT", **_VIT)
    yield _classifier("deit", "DeiT", **_VIT)
    yield _classifier("beit", "Beit", **_VIT, layer_scale_init_value=1.0, use_relative_position_bias=True)
    yield _classifier("data2vec-vision", "Data2VecVision", **_VIT, layer_scale_init_value=1.0)
    yield _classifier(
        "dinov2", "Dinov2", hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    yield _classifier("vit-msn", "ViTMSN", **_VIT)
    yield _classifier("swin", "Swin", image_size=32, **_STAGES)
    yield _classifier("swinv2", "Swinv2", image_size=32, **_STAGES)
    yield _classifier("pvt", "Pvt", image_size=64, size=64, num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[24, 48],
                      sequence_reduction_ratios=[2, 1], num_attention_heads=[2, 4], patch_sizes=[4, 2], strides=[4, 2],
                      mlp_ratios=[2, 2])  # fmt: skip
    yield _classifier("pvt-v2", "PvtV2", size=64, image_size=64, num_encoder_blocks=2, depths=[1, 1],
                      hidden_sizes=[24, 48], sr_ratios=[2, 1], num_attention_heads=[2, 4], patch_sizes=[7, 3],
                      strides=[4, 2], mlp_ratios=[2, 2])  # fmt: skip
    yield _classifier("cvt", "Cvt", embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3], size=64)
    yield _classifier("levit", "Levit", size=64, image_size=64, hidden_sizes=[32, 48, 64],
                      num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8])  # fmt: skip
    yield _classifier(
        "mobilevit",
        "MobileViT",
        size=64,
        image_size=64,
        hidden_sizes=[24, 32, 48],
        neck_hidden_sizes=[8, 8, 16, 24, 32, 48, 96],
    )
    yield _classifier(
        "mobilevitv2", "MobileViTV2", size=64, image_size=64, width_multiplier=0.25, base_attn_unit_dims=[32, 48, 64]
    )
    yield _classifier("hiera", "Hiera", size=64, image_size=[64, 64], embed_dim=16, depths=[1, 1, 1],
                      num_heads=[1, 2, 4], num_query_pool=2, masked_unit_size=[8, 8])  # fmt: skip
    yield _classifier(
        "poolformer",
        "PoolFormer",
        size=64,
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 24, 32, 48],
        layer_scale_init_value=1.0,
    )
    yield _classifier("focalnet", "FocalNet", image_size=32, embed_dim=24, depths=[1, 1], hidden_sizes=[24, 48],
                      focal_levels=[1, 1], focal_windows=[3, 3], patch_size=2)  # fmt: skip
    yield _classifier(
        "swiftformer",
        "SwiftFormer",
        size=64,
        image_size=64,
        depths=[1, 1, 1, 1],
        embed_dims=[16, 24, 32, 48],
        layer_scale_init_value=1.0,
    )
    yield _model("siglip-vision", "SiglipVision", **_VIT)
    yield _model("clip-vision", "CLIPVision", **_VIT)
    yield _model("ijepa", "IJepa", **_VIT)


def _convolutional() -> Iterator[Network]:
    yield _classifier("resnet", "ResNet", embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1])
    yield _classifier(
        "regnet", "RegNet", embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], groups_width=8
    )
    yield _classifier(
        "convnext", "ConvNext", size=64, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_scale_init_value=1.0
    )
    yield _classifier("convnextv2", "ConvNextV2", size=64, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1])
    yield _classifier("mobilenet-v1", "MobileNetV1", size=64, depth_multiplier=0.25, image_size=64)
    yield _classifier("mobilenet-v2", "MobileNetV2", size=64, depth_multiplier=0.25, image_size=64)
    yield _classifier(
        "efficientnet",
        "EfficientNet",
        size=64,
        image_size=64,
        width_coefficient=0.25,
        depth_coefficient=0.25,
        hidden_dim=320,
    )
    yield _classifier("bit", "Bit", embedding_size=16, hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 1, 1], num_groups=8)
    yield _classifier("hgnet-v2", "HGNetV2", size=64, stem_channels=[3, 8, 16], stage_in_channels=[16, 24, 32, 48],
                      stage_mid_channels=[8, 8, 16, 16], stage_out_channels=[24, 32, 48, 64],
                      stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[2, 2, 2, 2], embedding_size=16,
                      hidden_sizes=[24, 32, 48, 64], depths=[1, 1, 1, 1])  # fmt: skip


def _dense() -> Iterator[Network]:
    """Networks that answer for each pixel, or with several tensors."""
    yield _classifier("segformer", "Segformer", size=64, task="ForSemanticSegmentation", num_encoder_blocks=4,
                      depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 48], num_attention_heads=[1, 2, 4, 4],
                      decoder_hidden_size=32)  # fmt: skip
    yield Network("swin2sr", "vision", lambda: hf.Swin2SRForImageSuperResolution(hf.Swin2SRConfig(
        image_size=16, embed_dim=24, depths=[1, 1], num_heads=[2, 2], window_size=4, upscale=2)),
        images(16))  # fmt: skip
    yield Network("dpt", "vision", lambda: hf.DPTForDepthEstimation(hf.DPTConfig(
        **_VIT | {"num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 24, 32, 48],
        fusion_hidden_size=32, is_hybrid=False)), images(32))  # fmt: skip
    yield Network("yolos", "vision", lambda: hf.YolosForObjectDetection(hf.YolosConfig(
        **_VIT | {"image_size": [32, 32]}, num_detection_tokens=8)), images(32))  # fmt: skip
    yield Network("vitdet", "vision", lambda: Called(hf.VitDetModel(hf.VitDetConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)), "pixel_values"),
        images(32))  # fmt: skip
    yield Network("glpn", "vision", lambda: hf.GLPNForDepthEstimation(hf.GLPNConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 24, 32, 48], num_attention_heads=[1, 2, 4, 4], decoder_hidden_size=32)),
        images(64))  # fmt: skip
