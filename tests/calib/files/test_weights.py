import os
import random
import struct
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from calib.errors import UserError
from calib.files.weights import LARGEST_HEADER, load_weights, restore
from tests.limited import mutated, read_within_limits

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


def pickled_zip(path, pickle, entries=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("w/data.pkl", pickle)
        for name, content in entries:
            archive.writestr(name, content)
    return path


def tensor_pickle(count, shape, stride, key=b"0", kind=b"FloatStorage"):
    """The pickle of {"weight": a tensor} in protocol 0, with whatever sizes are given."""
    numbers = [b"(" + b"".join(b"L%dL\n" % size for size in sizes) + b"t" for sizes in (shape, stride)]
    storage = b"(Vstorage\nctorch\n" + kind + b"\nV" + key + b"\nVcpu\nL%dL\ntQ" % count
    return b"}Vweight\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n" + b"".join(numbers) + b"I00\nNtRs."


def bombs(directory):
    """Small files that ask for much."""
    gigabytes = 2**35
    yield pickled_zip(directory / "storage.pt", tensor_pickle(gigabytes, [gigabytes], [1]), [("w/data/0", b"1234")])
    yield pickled_zip(directory / "view.pt", tensor_pickle(1, [gigabytes], [0]), [("w/data/0", b"1234")])
    yield pickled_zip(directory / "behind.pt", tensor_pickle(1, [1, 1], [1, 1], b"1"), [("w/data/0", b"1234")])
    yield pickled_zip(directory / "beyond.pt", tensor_pickle(4, [2], [gigabytes]), [("w/data/0", bytes(16))])
    yield pickled_zip(directory / "negative.pt", tensor_pickle(4, [2], [-1]), [("w/data/0", bytes(16))])
    yield pickled_zip(directory / "dimensions.pt", tensor_pickle(4, [1] * 1000, [0] * 1000), [("w/data/0", bytes(16))])
    yield pickled_zip(directory / "array.pt", b"}Vweight\ncbuiltins\nbytearray\n(L99999999999L\ntRs.")
    yield pickled_zip(directory / "text.pt", b"\x8e" + struct.pack("<Q", gigabytes))
    zeros = [("w/data/0", bytes(2**26))]
    yield pickled_zip(directory / "compressed.pt", tensor_pickle(2**24, [2**24], [1]), zeros, zipfile.ZIP_DEFLATED)
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.}Vlittle_endian\nI01\ns."
    path = directory / "stream.pt"
    path.write_bytes(
        magic + tensor_pickle(gigabytes, [gigabytes], [1]) + b"(V0\nl." + struct.pack("<q", gigabytes) + b"1234"
    )
    yield path
    path = directory / "negative stream.pt"
    path.write_bytes(magic + tensor_pickle(4, [4], [1]) + b"(V0\nl." + struct.pack("<q", -1) + b"1234")
    yield path
    path = directory / "announced.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[34359738368],"data_offsets":[0,137438953472]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    yield path


def test_small_files_that_ask_for_much_memory(tmp_path):
    assert "read" not in read_within_limits("weights", *bombs(tmp_path))


def test_mutated_checkpoints_are_read_or_refused(tmp_path):
    generator, files = random.Random(1), []
    for form, protocol in (("zip", 2), ("stream", 2), ("stream", 4)):
        content = save(layers().state_dict(), tmp_path / "w.pt", form, protocol).read_bytes()
        for index in range(80):
            files.append(tmp_path / f"{form}{protocol}-{index}.pt")
            files[-1].write_bytes(mutated(content, generator))
    save_file(layers().state_dict(), tmp_path / "w.safetensors")
    for index in range(60):
        files.append(tmp_path / f"{index}.safetensors")
        files[-1].write_bytes(mutated((tmp_path / "w.safetensors").read_bytes(), generator))
    said = read_within_limits("weights", *files)
    assert 0 < said.count("read") < len(files)


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
