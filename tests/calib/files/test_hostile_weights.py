"""Files of weights that somebody has damaged, or made to do harm."""

from __future__ import annotations

import random
import struct
import zipfile

from safetensors.torch import save_file

from tests.calib.files.test_weights import layers, save
from tests.limited import mutated, read_within_limits


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


def test_small_files_that_ask_for_much_memory(warm, tmp_path):
    assert "read" not in read_within_limits("weights", *bombs(tmp_path), warm=warm)


def test_mutated_checkpoints_are_read_or_refused(warm, tmp_path):
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
    said = read_within_limits("weights", *files, warm=warm)
    assert 0 < said.count("read") < len(files)
