"""`--attention`: every stage of a run sees the products quantised, and a target that cannot do so refuses."""

import json
from collections.abc import Iterator

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.task import Batch
from deploy.stages.finetuning import FINE_TUNED
from smpq.training.finetuned import record_of_file
from tests.commands import assert_matches, done, refused

HERE = "tests.deploy.stages.test_attention"
COMMON = (
    "--formats",
    "w4a3,w8a8",
    "--rounding",
    "nearest",
    "--effort",
    "fast",
    "--samples",
    "32",
    "--budget",
    "avg_bits=5",
)
WIDTH, HEADS = 12, 2
_FORMS = 4


class Net(nn.Module):
    """One attention of each form: causal, with a mask, with shared heads, as einsums; and one that no layer reads."""

    pure = True

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(_FORMS + 1))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(_FORMS + 1))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("allowed", torch.rand(5, 5) > 0.3)

    def mixed(self, number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if number == 0:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if number == 1:
            return F.scaled_dot_product_attention(q, k, v, self.allowed)
        if number == 2:
            return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], scale=0.6, enable_gqa=True)
        shares = (torch.einsum("bhid,bhjd->bhij", q, k) * 0.4).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", shares, v)

    def forward(self, x: Tensor) -> Tensor:
        for number, (qkv, out) in enumerate(zip(self.qkv, self.out, strict=True)):
            q, k, v = qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            result = self.mixed(number, q, k, v).transpose(1, 2).flatten(2)
            x = x + out(self.norm(result) if number == _FORMS else result)
        return self.head(x.mean(1))


class Task:
    name, metric_name = "attention", "accuracy"

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return Net().eval()

    def batches(self, seed: int) -> list[Batch]:
        model = self.model()
        inputs = [2 * torch.randn(32, 5, WIDTH, generator=torch.Generator().manual_seed(seed + n)) for n in range(2)]
        with torch.no_grad():
            return [Batch((x,), model(x).argmax(1)) for x in inputs]

    def calibration(self) -> list[Batch]:
        return self.batches(0)

    def evaluation(self) -> list[Batch]:
        return self.batches(50)

    def training(self, epoch: int) -> Iterator[Batch]:
        yield from self.batches(100)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")

    def metric(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(1) == target).float()


class Plain(Task):
    """No attention at all."""

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Flatten(), nn.Linear(5 * WIDTH, 3)).eval()


def task(data: object = None, weights: object = None) -> Task:
    return Task()


def plain(data: object = None, weights: object = None) -> Plain:
    return Plain()


def read(run, name):
    return json.loads((run / name).read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = {}
    for name, options in (("off", ()), ("on", ("--attention",))):
        found[name] = tmp_path_factory.mktemp(name) / "run"
        said = done("run", "--task", f"{HERE}:task", "--target", "simulate", *COMMON, *options, "--out", found[name])
        (found[name] / "said").write_text(said.err + said.out)
    return found


def test_the_file_computes_what_the_fake_quantised_model_does(runs):
    stages = read(runs["on"], "verify.json")["stages"]
    assert stages["float"]["agreement"] == 1
    assert stages["onnx"]["agreement"] > 0.98
    assert stages["engine"]["agreement"] > 0.98
    export = read(runs["on"], "export.json")
    assert not export["merged_tensors"]
    more = export["changes"]["quantize_tensors"] - read(runs["off"], "export.json")["changes"]["quantize_tensors"]
    assert more == 4 * _FORMS


def test_what_stays_float_is_told_and_recorded(runs):
    reason = "no layer reads its result: its products stay in floating point"
    rows = read(runs["on"], "space.json")["skipped"]
    assert [row["reason"] for row in rows] == [reason]
    assert reason in " ".join((runs["on"] / "said").read_text().split())
    assert read(runs["off"], "space.json")["skipped"] == []
    assert "attention" not in (runs["off"] / "said").read_text().replace("test_attention", "").replace(".attention", "")


def test_a_run_keeps_the_setting(runs):
    assert read(runs["on"], "run.json")["settings"]["attention"] is True
    assert read(runs["off"], "run.json")["settings"]["attention"] is False
    found = refused("run", "--task", f"{HERE}:task", "--target", "simulate", *COMMON, "--out", runs["on"])
    assert_matches("attention", found)


def test_later_stages_use_the_products_too(runs):
    run = runs["on"]
    for command, *options in (("reconstruct", "--iterations", 5), ("export",), ("build",), ("verify",), ("report",)):
        done(command, run, *options, "--quiet")
    stages = read(run, "verify.json")["stages"]
    assert stages["onnx"]["agreement"] > 0.98
    grids = {row["tensor"] for row in read_weights(run)["quantizers"]}
    assert len([name for name in grids if name.startswith(("softmax", "masked_fill"))]) == _FORMS
    done("finetune", run, "--epochs", 1, "--quiet")
    assert len({row["tensor"] for row in read_weights(run)["quantizers"]}) == len(grids)


def read_weights(run):
    return msgspec.to_builtins(record_of_file(run / FINE_TUNED))


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt-rtx", "jetson-orin"])
def test_a_target_without_such_kernels_refuses(target, tmp_path):
    out = tmp_path / "run"
    found = refused("run", "--task", f"{HERE}:task", "--target", target, "--attention", "--out", out)
    assert_matches(rf"--attention: {target} computes .* in floating point; use --target simulate", found)
    assert not out.exists()


def test_a_network_without_attention_is_told_so(tmp_path):
    found = done(
        "score", "--task", f"{HERE}:plain", "--target", "simulate", *COMMON[:-2], "--attention", "--out", tmp_path
    )
    assert "--attention changes nothing" in " ".join((found.err + found.out).split())
