"""What is kept of the float model's outputs."""

import torch

from calib.task import Batch
from smpq.value.float_outputs import FloatOutputs
from smpq.value.incremental import output_bytes_per_sample
from tests.smpq.problems import W8A8
from tests.smpq.value.workers.evaluated import compute, network

OUTPUT_BYTES = 5 * 4


def test_outputs_are_kept_as_long_as_they_fit():
    runs = []

    def run(batch):
        runs.append(batch)
        return {"logits": batch.inputs[0] + 1}

    batches = [Batch((torch.zeros(n, 2),), None) for n in (4, 6, 3)]
    outputs = FloatOutputs(run, 7 * 2 * 4)
    for _ in range(2):
        for batch in batches:
            assert torch.equal(outputs(batch)["logits"], torch.ones(len(batch.inputs[0]), 2))
    assert [len(batch.inputs[0]) for batch in runs] == [4, 6, 3, 6], "the second one does not fit, the third one does"


def test_the_whole_and_its_parts_keep_the_same_outputs():
    value = compute(samples=249)
    policy = value.space.uniform(W8A8)
    parts = [value.fold(number)([policy]) for number in range(value.folds)]
    kept = dict(value._float_outputs._kept)
    assert len(kept) == len(value._batches)
    value([policy])
    assert dict(value._float_outputs._kept) == kept
    assert len(parts) == value.folds == 4


def test_what_is_not_kept_changes_no_value_and_what_is_kept_counts():
    free, limited = compute(samples=249), compute(samples=249)
    limited._most_kept = 100 * OUTPUT_BYTES
    policy = free.space.uniform(W8A8)
    assert limited([policy]) == free([policy])
    assert len(limited._float_outputs._kept) < len(free._float_outputs._kept)
    assert output_bytes_per_sample(network().traced) == OUTPUT_BYTES
    assert free.bytes_of_a_copy - limited.bytes_of_a_copy == 156 * OUTPUT_BYTES
    assert compute(value="loss", samples=249).bytes_of_a_copy < limited.bytes_of_a_copy
