"""Networks of packages that are not needed here; those of packages that are not installed are left out.

timm, torchvision, monai, diffusers, x-transformers, vit-pytorch and pytorchcv, all with random weights: small
configurations where there are such, else the smallest of a family.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from zoo_networks.network import Called, Inputs, Network, floats, images, tokens

_TIMM = {
    96: (
        "test_byobnet",
        "test_convnext",
        "test_efficientnet",
        "test_efficientnet_evos",
        "test_efficientnet_gn",
        "test_mambaout",
        "test_nfnet",
        "test_resnet",
        "cs3darknet_s",
        "repvgg_a0",
        "mobileone_s0",
        "seresnext26ts",
        "skresnet18",
        "resnest14d",
        "dla46x_c",
        "hardcorenas_a",
        "lcnet_035",
        "mixnet_s",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_035",
        "tinynet_e",
        "ghostnet_050",
        "ese_vovnet19b_slim",
        "inception_next_atto",
        "edgenext_xx_small",
        "repghostnet_050",
        "starnet_s1",
        "mobilevit_xxs",
        "rexnet_100",
        "regnetz_005",
        "hgnetv2_b0",
    ),
    160: ("test_vit", "test_vit2", "test_vit3", "test_vit4"),
    224: (
        "efficientvit_b0",
        "efficientvit_m0",
        "fastvit_t8",
        "repvit_m0_9",
        "levit_128s",
        "xcit_nano_12_p16_224",
        "pvt_v2_b0",
        "convit_tiny",
        "pit_ti_224",
        "coat_lite_tiny",
        "efficientformer_l1",
        "visformer_tiny",
        "resmlp_12_224",
        "gmlp_ti16_224",
        "mixer_s32_224",
        "tnt_s_patch16_224",
    ),
}
"""By the size of the image."""
_TORCHVISION = (
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "densenet121",
    "mnasnet0_5",
    "regnet_x_400mf",
    "efficientnet_b0",
    "resnet18",
    "lraspp_mobilenet_v3_large",
    "deeplabv3_mobilenet_v3_large",
)
_PYTORCHCV = (
    "squeezenet_v1_1",
    "resnet10",
    "preresnet10",
    "shufflenetv2_wd2",
    "menet108_8x1_g3",
    "igcv3_wd4",
    "darts",
    "proxylessnas_cpu",
    "fbnet_cb",
    "condensenet74_c8_g8",
    "peleenet",
    "resnet20_cifar10",
    "pyramidnet110_a48_cifar10",
    "shakeshakeresnet20_2x16d_cifar10",
    "diaresnet20_cifar10",
    "ror3_56_cifar10",
)
_FLAT = {"spatial_dims": 2, "in_channels": 3, "out_channels": 2}
_SOLID = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_LEVELS = {"channels": (8, 16, 32), "strides": (2, 2)}
_MONAI: dict[str, tuple[str, dict[str, Any], Inputs]] = {
    "unet": ("UNet", {**_FLAT, **_LEVELS}, images(64)),
    "unet-3d": ("UNet", {**_SOLID, **_LEVELS}, floats(1, 16, 16, 16)),
    "segresnet": ("SegResNet", {**_FLAT, "init_filters": 8}, images(64)),
    "segresnet-3d": ("SegResNet", {**_SOLID, "init_filters": 8}, floats(1, 16, 16, 16)),
    "attention-unet": ("AttentionUnet", {**_FLAT, **_LEVELS}, images(64)),
    "highresnet": ("HighResNet", _FLAT, images(32)),
    "basic-unet": ("BasicUNet", {**_FLAT, "features": (8, 8, 16, 32, 32, 8)}, images(64)),
    "unetr": (
        "UNETR",
        {**_FLAT, "img_size": (32, 32), "feature_size": 8, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4},
        images(32),
    ),
    "resnet10-3d": ("resnet10", {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 4}, floats(1, 32, 32, 32)),
}
_VIT = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 48, "depth": 2, "heads": 4, "mlp_dim": 96}
_VIT_PYTORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "simple": ("SimpleViT", {}),
    "deep": ("deepvit.DeepViT", {}),
    "cait": ("cait.CaiT", {"cls_depth": 1}),
    "parallel": ("parallel_vit.ViT", {"num_parallel_branches": 2}),
    "registers": ("simple_vit_with_register_tokens.SimpleViT", {}),
    "small-data": ("vit_for_small_dataset.ViT", {}),
    "rotary": ("rvt.RvT", {}),
    "normalised": ("normalized_vit.nViT", {}),
}
_DECODERS: dict[str, dict[str, Any]] = {
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True, "alibi_num_heads": 2},
    "glu": {"ff_glu": True, "ff_swish": True},
    "grouped": {"attn_kv_heads": 1, "use_rmsnorm": True},
    "gated": {"attn_gate_values": True},
    "squared": {"ff_relu_squared": True, "attn_qk_norm": True},
}
_BLOCKS = {"layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8, "sample_size": 16}
_DIFFUSERS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], Inputs]] = {
    "unet": (
        "UNet2DModel",
        {
            **_BLOCKS,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "attention_head_dim": 8,
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        ("sample", "timestep"),
        lambda count: (torch.randn(count, 3, 16, 16), torch.randint(0, 1000, (count,))),
    ),
    "unet-with-text": (
        "UNet2DConditionModel",
        {
            **_BLOCKS,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "attention_head_dim": 8,
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
        },
        ("sample", "timestep", "encoder_hidden_states"),
        lambda count: (torch.randn(count, 4, 16, 16), torch.randint(0, 1000, (count,)), torch.randn(count, 6, 32)),
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "sample_size": 8,
            "norm_num_groups": 8,
            "num_embeds_ada_norm": 100,
        },
        ("hidden_states", "timestep", "class_labels"),
        lambda count: (
            torch.randn(count, 4, 8, 8),
            torch.randint(0, 1000, (count,)),
            torch.randint(0, 100, (count,)),
        ),
    ),
    "tiny-autoencoder": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (16, 16),
            "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        ("sample",),
        images(32),
    ),
}


def networks() -> Iterator[Network]:
    """Yield the networks of all packages that are installed."""
    for package, of_it in {
        "timm": _of_timm,
        "torchvision": _of_torchvision,
        "monai": _of_monai,
        "vit_pytorch": _of_vit_pytorch,
        "x_transformers": _of_x_transformers,
        "diffusers": _of_diffusers,
        "pytorchcv": _of_pytorchcv,
    }.items():
        if find_spec(package) is not None:
            for name, make, inputs in of_it():
                yield Network(f"{package}-{name}", package, make, inputs)


_Made = Iterator[tuple[str, Callable[[], nn.Module], Inputs]]


def _later(path: str, *args: Any, **named: Any) -> Callable[[], nn.Module]:
    """Return a call of what a module holds, which is imported then."""

    def make() -> nn.Module:
        module, _, name = path.rpartition(".")
        made: nn.Module = getattr(importlib.import_module(module), name)(*args, **named)
        return made

    return make


def _of_timm() -> _Made:
    for size, names in _TIMM.items():
        for name in names:
            yield name, _later("timm.create_model", name, num_classes=10), images(size)


def _of_torchvision() -> _Made:
    for name in _TORCHVISION:
        without = {"weights_backbone": None} if "mobilenet_v3_large" in name else {}
        yield name, _later("torchvision.models.get_model", name, weights=None, **without), images(96)


def _of_monai() -> _Made:
    for name, (kind, how, inputs) in _MONAI.items():
        yield name, _later(f"monai.networks.nets.{kind}", **how), inputs


def _of_vit_pytorch() -> _Made:
    for name, (path, how) in _VIT_PYTORCH.items():
        yield name, _later(f"vit_pytorch.{path}", **_VIT, **how), images(32)


def _of_x_transformers() -> _Made:
    def decoder(**how: Any) -> nn.Module:
        package = importlib.import_module("x_transformers")
        layers = package.Decoder(dim=48, depth=2, heads=4, attn_dim_head=16, **how)
        made: nn.Module = package.TransformerWrapper(num_tokens=128, max_seq_len=32, attn_layers=layers)
        return made

    for name, how in _DECODERS.items():
        yield name, lambda how=how: decoder(**how), tokens(24)


def _of_diffusers() -> _Made:
    for name, (kind, how, names, inputs) in _DIFFUSERS.items():
        make = _later(f"diffusers.{kind}", **how)
        yield name, lambda make=make, names=names: Called(make(), *names), inputs


def _of_pytorchcv() -> _Made:
    for name in _PYTORCHCV:
        size = 32 if name.endswith("cifar10") else 224
        yield name, _later("pytorchcv.model_provider.get_model", name, pretrained=False), images(size)
