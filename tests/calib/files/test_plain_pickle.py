import pickle
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from calib.files import plain_pickle
from calib.files.inert import Call, Named, WrongPickleError
from calib.files.plain_pickle import read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DATA = {
    "text": "é\n\\u1234",
    b"bytes": b"\x00\xff'",
    "numbers": [0, 1, 255, 256, 65536, -1, 2**31, -(2**40), True, False, None],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": {"b": [[]]}},
    3: "three",
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_data_come_back(protocol):
    content = pickle.dumps(DATA, protocol)
    found = read_pickle(b"xx" + content + b"behind", 2)
    assert found.value == DATA
    assert found.end == 2 + len(content)
    assert found.outside == ()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_shared_stays_shared_and_may_contain_itself(protocol):
    item = []
    item.append(item)
    found, again = read_pickle(pickle.dumps([item, item], protocol)).value
    assert found is again
    assert found[0] is found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_calls_are_written_down(protocol):
    found = read_pickle(pickle.dumps([np.float64(2.5), OrderedDict(a=1), np.ndarray], protocol)).value
    assert isinstance(found[0], Call)
    assert found[0].function.endswith("multiarray.scalar")
    assert found[1] == {"a": 1}
    assert isinstance(found[2], Named)
    assert found[2].name == "numpy.ndarray"


def test_strings_of_python_2_are_bytes():
    assert read_pickle(b"\x80\x02}(U\x01aK\x01T\x02\x00\x00\x00bcK\x02u.").value == {b"a": 1, b"bc": 2}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"N",
        b"\x80\x06N.",
        b"h\x00.",
        b"]K\x01u.",
        b"(K\x01u.",
        b"(K\x01K\x02K\x03d.",
        b"K\x01K\x02a.",
        b"K\x01)R.",
        b"cos\nsystem\nK\x01R.",
        b"]}b.",
        b"(e.",
        b"t.",
        b"}\x85}K\x01s.",  # a key that cannot be hashed
        b"})\x85\x85\x85K\x01s.",  # a key whose hash would recurse
        b"\x82\x01.",  # a registered extension
        b"\x84\x01\x00\x00\x00.",
        b"Pid\n.",
        b"\x97.",  # a buffer that is handed over beside the pickle
        b"N\x98.",
        b"\x8b\x00\x00\x00\x01.",
        b"\x8e" + b"\xff" * 8 + b".",
        b"I" + b"9" * 5000 + b"\n.",
        b"Vno end",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"K\x01K\x02\x93.",
    ],
)
def test_what_is_damaged_or_not_data_is_refused(content):
    with pytest.raises(WrongPickleError):
        read_pickle(content)


@pytest.mark.parametrize("operation", [b"]", b"}", b"(", b"\x94", b"V\n", b"h\x00", b"cs\nt\n"])
def test_operations_are_counted_and_each_takes_little_memory(monkeypatch, operation):
    assert plain_pickle.MOST_STEPS <= 2_000_000
    monkeypatch.setattr(plain_pickle, "MOST_STEPS", 20_000)
    content = b"Nq\x00" + operation * 20_000 + b"."
    tracemalloc.start()
    try:
        with pytest.raises(WrongPickleError, match="more than 20,000 operations"):
            read_pickle(content)
        assert tracemalloc.get_traced_memory()[1] < 150 * 20_000
    finally:
        tracemalloc.stop()


def test_bytes_that_are_encoded_are_no_longer_than_the_file():
    many = b"c_codecs\nencode\nq\x00X\xe8\x03\x00\x00" + b"x" * 1000 + b"q\x01X\x06\x00\x00\x00latin1q\x02]"
    many += b"h\x00h\x01h\x02\x86Ra" * 200 + b"."
    with pytest.raises(WrongPickleError, match="longer than the file"):
        read_pickle(many)


def test_depth_is_no_problem():
    lists = read_pickle(b"]" * 100_000 + b"a" * 99_999 + b".").value
    assert isinstance(lists[0][0], list)
    calls = read_pickle(b"cm\nf\nq\x00N" + b"q\x01h\x00h\x01\x85R" * 100_000 + b".").value
    assert isinstance(calls.arguments[0], Call)
