import os
import pickle

import numpy as np
import pytest
import torch

from calib.errors import UserError
from calib.tasks.cifar10_files import find_cifar10, read_cifar10


def test_the_directory_or_its_parent(cifar10_like):
    assert find_cifar10(cifar10_like) == cifar10_like
    assert find_cifar10(cifar10_like.parent) == cifar10_like


def test_what_is_missing_is_named(cifar10_like, tmp_path):
    with pytest.raises(UserError, match="no directory"):
        find_cifar10(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no file data_batch_1"):
        find_cifar10(tmp_path)
    (cifar10_like / "test_batch").unlink()
    with pytest.raises(UserError, match="no file test_batch"):
        find_cifar10(cifar10_like)


def test_pixels_and_labels_are_those_of_the_files(cifar10_like):
    pixels, labels = read_cifar10(cifar10_like, train=True)
    assert pixels.shape == (30, 3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert labels.dtype == torch.int64
    second = pickle.loads((cifar10_like / "data_batch_2").read_bytes())  # noqa: TID251 - written by this test
    assert labels[6:12].tolist() == second[b"labels"]
    # Channel-major: the first 1,024 values are the red plane, row by row.
    assert pixels[6, 0, 0].tolist() == second[b"data"][0, :32].tolist()
    assert pixels[6, 2, 31, 31] == second[b"data"][0, -1]
    assert len(read_cifar10(cifar10_like, train=False)[1]) == 6


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_and_text_keys(cifar10_like, protocol):
    data = np.arange(3072, dtype=np.uint8).reshape(1, 3072)
    (cifar10_like / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": [3]}, protocol=protocol))
    pixels, labels = read_cifar10(cifar10_like, train=False)
    assert labels.tolist() == [3]
    assert pixels.flatten().tolist() == data.flatten().tolist()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("run-by-a-pickle",)


def test_a_pickle_runs_nothing(cifar10_like, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (cifar10_like / "test_batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(UserError, match="refused"):
        read_cifar10(cifar10_like, train=False)
    assert not (tmp_path / "run-by-a-pickle").exists()


GOOD = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "'data'"),
        ({b"labels": [1, 2]}, "'data'"),
        ({b"data": GOOD}, "'labels'"),
        ({b"data": GOOD.astype(np.float32), b"labels": [1, 2]}, "float32"),
        ({b"data": GOOD[:, :100], b"labels": [1, 2]}, r"\[2, 100\]"),
        ({b"data": [[0]], b"labels": [1, 2]}, "list"),
        ({b"data": GOOD, b"labels": [1]}, "2 images and 1 labels"),
        ({b"data": GOOD, b"labels": [1, 10]}, "0 to 9"),
        ({b"data": GOOD, b"labels": "12"}, "0 to 9"),
    ],
)
def test_wrong_contents_are_user_errors(cifar10_like, record, message):
    (cifar10_like / "test_batch").write_bytes(pickle.dumps(record, protocol=2))
    with pytest.raises(UserError, match=message):
        read_cifar10(cifar10_like, train=False)


def test_a_truncated_file_is_a_user_error(cifar10_like):
    path = cifar10_like / "test_batch"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="complete"):
        read_cifar10(cifar10_like, train=False)
