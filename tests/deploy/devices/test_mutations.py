"""Changed messages of devices are refused with one message, or change nothing; benchmarks/device_messages.py does them
all.
"""

from __future__ import annotations

import random

import pytest

from tests.deploy.devices.mutations import messages, mutations, outcome

COUNT = 250


@pytest.mark.parametrize("index", range(4))
def test_changed_messages(tmp_path, index):
    message = messages(tmp_path)[index]
    good = message.read(message.content)
    every = list(mutations(message.content))
    found = [
        outcome(message, mutation, good) for mutation in random.Random(index).sample(every, min(COUNT, len(every)))
    ]
    assert found.count("refused") > len(found) / 10, "they are read after all"
