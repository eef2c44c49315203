import os
import pickle
import random
import struct

import numpy as np
import pytest
import torch

from calib.errors import UserError
from calib.tasks.cifar10_files import LARGEST_FILE, find_cifar10, read_cifar10
from tests.limited import mutated, read_within_limits


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


def test_arrays_in_the_order_of_fortran(cifar10_like):
    data = np.asfortranarray(np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (cifar10_like / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": [3, 4]}, protocol=protocol))
        assert read_cifar10(cifar10_like, train=False)[0].flatten(1).tolist() == data.tolist()


def test_a_file_of_python_2(cifar10_like):
    """As the official ones: byte strings, and an array whose bytes are a string."""
    pixels = bytes(range(256)) * 12
    content = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x04testq\x03U\x06labelsq\x04]q\x05K\x07aU\x04dataq\x06"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\tU\x01bq\n\x87q\x0bRq\x0c"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\rU\x02u1q\x0eK\x00K\x01\x87q\x0fRq\x10"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(pixels))
        + pixels
        + b"q\x11tbu."
    )
    (cifar10_like / "test_batch").write_bytes(content)
    found, labels = read_cifar10(cifar10_like, train=False)
    assert found.flatten().tolist() == list(pixels)
    assert labels.tolist() == [7]


# an array of objects is made from bytes, and one of them is replaced: the old one, which is no object, would be
# released
CORRUPTING = b"\x80\x05cnumpy\nndarray\n(K\x01\x85VO\n\x96" + struct.pack("<Q", 8) + b"AAAAAAAAtRK\x00Ns."
BOMBS = {
    "values that are announced": b"\x8e" + struct.pack("<Q", 2**33),
    "bytes that are announced": b"\x96" + struct.pack("<Q", 2**33),
    "text that is announced": b"\x8d" + struct.pack("<Q", 2**33),
    "a frame that is announced": b"\x80\x04\x95" + struct.pack("<Q", 2**33),
    "a number that is announced": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a large memo": b"Nr" + struct.pack("<I", 2**31 - 1) + b".",
    "a large memo in text": b"Np2147483647\n.",
    "a call of numpy": b"cnumpy\nndarray\n(K\x01\x85VO\nN)tR.",
    "an array of objects": b"}(Vdata\ncnumpy\nndarray\n(I99999999999\n\x85Vu1\ntRVlabels\n]u.",
    "a call of bytearray": b"}(Vdata\ncbuiltins\nbytearray\nL99999999999L\n\x85RVlabels\n]u.",
    "a large shape": b"}(Vdata\ncnumpy.core.multiarray\n_reconstruct\n)R(K\x01L99999999999L\nM\x00\x0c\x86"
    b"cnumpy\ndtype\nVu1\n\x85RI0\nC\x00tbVlabels\n]u.",
    "a list in itself": b"]q\x00h\x00ah\x00a.",
    "a dictionary in itself": b"}q\x00Vdata\nh\x00sVlabels\nh\x00s.",
    "corruption": CORRUPTING,
}


def test_files_that_ask_for_memory_or_corrupt_it(warm, tmp_path):
    files = []
    for name, content in BOMBS.items():
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "test_batch")
        files[-1].write_bytes(content)
    (tmp_path / "large").mkdir()
    files.append(tmp_path / "large" / "test_batch")
    with files[-1].open("wb") as stream:
        stream.truncate(LARGEST_FILE + 1)
    said = read_within_limits("cifar10", *files, warm=warm)
    assert "read" not in said
    assert "larger than" in said[-1]


def test_mutated_files_are_read_or_refused(warm, cifar10_like, tmp_path):
    generator = random.Random(0)
    genuine = pickle.loads((cifar10_like / "test_batch").read_bytes())  # noqa: TID251 - written by this test
    files = []
    for index in range(300):
        (tmp_path / str(index)).mkdir()
        files.append(tmp_path / str(index) / "test_batch")
        files[-1].write_bytes(mutated(pickle.dumps(genuine, protocol=index % 6), generator))
    said = read_within_limits("cifar10", *files, warm=warm)
    assert 0 < said.count("read") < len(files)
