from __future__ import annotations

import os
import struct
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from calib.errors import UserError
from calib.files.weights import LARGEST_HEADER, load_weights, restore

FORMS = {"zip": True, "stream": False}


def save(record, path, form="zip", protocol=2):
    torch.save(record, path, _use_new_zipfile_serialization=FORMS[form], pickle_protocol=protocol)
    return path


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_is_read_as_torch_reads_it(tmp_path, form, protocol):
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    shared = torch.arange(24.0)
    state = {
        **model.state_dict(),
        "parameter": model[0].weight,
        "transposed": shared.view(4, 6).T,
        "part": shared[3:7],
        "every second": shared[::2],
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        **{
            str(kind): torch.ones(3).to(kind)
            for kind in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8)
        },
        **{
            str(kind): torch.ones(3).to(kind)
            for kind in (torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64)
        },
    }
    record = {
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "arguments": {"lr": 0.1, "names": ["a"]},
    }
    path = save(record, tmp_path / "w.pt", form, protocol)
    expected = torch.load(path, weights_only=False)["state_dict"]  # noqa: TID251 - written by this test
    found = load_weights(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_what_stands_beside_the_weights_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = layers()
    path = save({"model": model.state_dict(), "config": Evil(), "net": model}, tmp_path / "w.pt")
    restore(layers(), load_weights(path), path)
    assert not (tmp_path / "made-by-a-checkpoint").exists()


WRONG_TENSORS = {
    "expanded": (
        lambda: torch.ones(1).expand(10**9, 32),
        "an expanded view, 32000000000 values where the file holds 1",
    ),
    "sparse": (lambda: torch.eye(3).to_sparse(), "sparse"),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
    "meta": (lambda: torch.ones(10**6, 10**6, device="meta"), "meta"),
    "eight bits": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "unsigned": (lambda: torch.ones(3, dtype=torch.uint16), "uint16"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_tensors_that_are_not_dense_numbers(tmp_path, kind, form):
    make, message = WRONG_TENSORS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save({"fine": torch.ones(2), "odd\nname": make()}, tmp_path / "w.pt", form)
    assert path.stat().st_size < 5000
    with pytest.raises(UserError, match=message) as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(tmp_path, kind):
    path = save(
        {"weight": torch.full((2, 3), 1.5, dtype=kind), "bias": torch.full((2,), -0.25, dtype=kind)}, tmp_path / "w.pt"
    )
    model = nn.Linear(3, 2)
    restore(model, load_weights(path), path)
    assert model.weight.dtype == torch.float32
    assert model.weight.unique().tolist() == [1.5]
    assert model.bias.unique().tolist() == [-0.25]


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.uint8])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_other_types_are_refused(tmp_path, kind, name):
    weights = {"weight": torch.ones(2, 3).to(kind), "bias": torch.ones(2)}
    path = tmp_path / name
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    with pytest.raises(UserError, match=f"'weight' .* is {str(kind).removeprefix('torch.')}, the model wants float32"):
        restore(nn.Linear(3, 2), load_weights(path), path)


def test_eight_bit_floats_in_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.ones(2, 3).to(torch.float8_e5m2), "bias": torch.ones(2)}, path)
    with pytest.raises(UserError, match=r"'weight' .* is float8_e5m2, the model wants float32"):
        restore(nn.Linear(3, 2), load_weights(path), path)


def test_values_are_finite_after_the_conversion(tmp_path):
    for value, message in ((float("nan"), "NaN"), (1e300, "an infinite value")):
        path = save(
            {"weight": torch.full((2, 3), value, dtype=torch.float64), "bias": torch.ones(2)}, tmp_path / "w.pt"
        )
        with pytest.raises(UserError, match=f"'weight' .* holds {message}"):
            restore(nn.Linear(3, 2), load_weights(path), path)


def test_a_model_keeps_its_weights_when_they_are_refused():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(UserError, match="NaN"):
        restore(model, {"weight": torch.ones(2, 3), "bias": torch.full((2,), float("nan"))}, "w.pt")
    assert torch.equal(model.weight, before)


def test_weights_from_both_kinds_of_file(tmp_path):
    model = nn.Linear(3, 2)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "nested.pth"
    )
    for name in ("w.safetensors", "plain.pt", "nested.pth"):
        other = nn.Linear(3, 2)
        restore(other, load_weights(tmp_path / name), tmp_path / name)
        assert torch.equal(other.weight, model.weight)


def write_text(path):
    path.write_text("not a model")


def write_truncated(path):
    save_file(nn.Linear(30, 20).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


def write_nan(path):
    save_file({"weight": torch.tensor([float("nan")])}, path)


def write_module(path):
    torch.save(nn.Linear(2, 2), path)


def write_list(path):
    torch.save([1, 2], path)


def write_twice(path):
    header = (
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def write_long_header(path):
    path.write_bytes(struct.pack("<Q", LARGEST_HEADER + 1) + b" " * (LARGEST_HEADER + 1))


def write_deep_header(path):
    path.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000)


def write_jit(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(path)


def write_keys(path):
    torch.save({1: torch.ones(2)}, path)


def write_deep(path):
    record = {"weight": torch.ones(2)}
    for _ in range(50):
        record = {"state_dict": record}
    torch.save(record, path)


def write_twins(path):
    torch.save({"weight": torch.ones(2), "module.weight": torch.zeros(2)}, path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-checkpoint",)


def write_evil(path):
    torch.save({"weight": Evil()}, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.safetensors", lambda path: None, "no weights file"),
        ("a.safetensors", write_text, "complete"),
        ("a.safetensors", write_truncated, "complete"),
        ("a.safetensors", write_twice, "twice"),
        ("a.safetensors", write_long_header, "its header has"),
        ("a.safetensors", write_deep_header, "cannot read"),
        ("a.pt", write_text, "cannot read .* as a file of torch.save"),
        ("a.pt", write_module, "does not hold a state_dict"),
        ("a.pt", write_list, "does not hold a state_dict"),
        ("a.pt", write_jit, "TorchScript"),
        ("a.pt", write_keys, "a key of type int"),
        ("a.pt", write_deep, "does not hold a state_dict"),
        ("a.pt", write_twins, "module"),
        ("a.pt", write_evil, "posix.mkdir', which is not called"),
    ],
)
def test_wrong_weight_files_are_user_errors(tmp_path, monkeypatch, name, write, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / name)
    assert not (tmp_path / "made-by-a-checkpoint").exists()


def test_weights_that_do_not_fit_are_named(tmp_path):
    good = dict(nn.Linear(3, 2).state_dict())
    for weights, message in [
        ({"weight": good["weight"]}, "'bias'"),
        ({**good, "weight": torch.ones(2, 4)}, r"'weight'.*\[2, 4\].*\[2, 3\]"),
        ({**good, "other": torch.ones(1)}, "'other'"),
    ]:
        with pytest.raises(UserError, match=message):
            restore(nn.Linear(3, 2), weights, tmp_path)


def test_training_counters_may_be_missing(tmp_path):
    model = nn.BatchNorm1d(2)
    weights = {key: value for key, value in model.state_dict().items() if key != "num_batches_tracked"}
    weights["running_mean"] = torch.tensor([1.0, 2.0])
    restore(model, weights, tmp_path)
    assert model.running_mean.tolist() == [1.0, 2.0]
