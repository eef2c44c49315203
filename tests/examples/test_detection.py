import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from calib.data import check_batches
from calib.errors import UserError
from calib.network.tracing import trace_program
from calib.task import SetTask
from calib.tasks import load_task
from examples.detection import Record, average_precision, mean_average_precision, record_of
from examples.fastestdet import FastestDet
from tests.examples.archives import archive_of

NAMES, SIZE = ("b", "a", "c"), 64
BOXES = {"a": [[3, 0.25, 0.5, 0.2, 0.4]], "b": [], "c": [[3, 0.5, 0.5, 0.2, 0.2], [7, 0.1, 0.1, 0.1, 0.1]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("coco")
    pixels = np.random.default_rng(0).integers(0, 256, (len(NAMES), SIZE, SIZE, 3), dtype=np.uint8)
    archive_of({f"{name}.png": each for name, each in zip(NAMES, pixels, strict=True)}, path / "coco128.tar")
    (path / "coco128_boxes.json").write_text(json.dumps({name: {"boxes": boxes} for name, boxes in BOXES.items()}))
    torch.manual_seed(0)
    save_file(FastestDet().state_dict(), path / "w.safetensors")
    return path


@pytest.fixture(scope="module")
def task(folder):
    return load_task("examples.detection:task", folder, folder / "w.safetensors")


def cells(*objects, size=4):
    """What a network says that sees objects `(row, column, class, score, box width)`, each in the middle of a cell."""
    output = torch.zeros(85, size, size)
    output[3:5] = -20.0
    for row, column, label, score, width in objects:
        output[0, row, column], output[5 + label, row, column] = score, score
        output[1:3, row, column] = torch.tensor(0.5).atanh()
        output[3:5, row, column] = torch.tensor(width).logit()
    return output


def truth(*boxes):
    target = torch.full((8, 5), -1.0)
    for place, box in enumerate(boxes):
        target[place] = torch.tensor(box)
    return target


def test_all_images_are_evaluated_and_mirrored_ones_calibrate(task):
    assert isinstance(task, SetTask)
    (seen,), (mirrored,) = task.evaluation(), task.calibration()
    assert seen.inputs[0].shape == (3, 3, SIZE, SIZE)
    assert torch.equal(mirrored.inputs[0][0], seen.inputs[0][0].flip(2))
    assert mirrored.target[0, 0].tolist() == pytest.approx([3, 0.75, 0.5, 0.2, 0.4])
    assert (mirrored.target[0, 1:, 0] == -1).all()
    check_batches(task.calibration())


@pytest.mark.slow
def test_a_trace_computes_what_the_network_does_and_records_are_small(task):
    model, (batch,) = task.model(), task.evaluation()
    program, _ = trace_program(model, batch.inputs, free=False)
    with torch.no_grad():
        output = model(*batch.inputs)
        assert torch.allclose(program.module()(*batch.inputs), output, atol=1e-5)
    assert output.shape == (3, 85, SIZE // 16, SIZE // 16)
    records = task.records(output, batch.target)
    assert [len(record.truth) for record in records] == [1, 0, 2]
    assert 0 <= task.metric_of(records) <= 100
    assert task.loss(output, batch.target).shape == (3,)


def test_what_is_found_where_it_is_has_full_precision():
    seen = record_of(cells((1, 2, 3, 0.9, 0.25)), truth((3, 0.625, 0.375, 0.25, 0.25)))
    assert seen.found.tolist() == [True]
    assert mean_average_precision([seen]) == 1


def test_doubles_go_and_a_second_hit_of_one_object_counts_against():
    own = (3, 0.625, 0.375, 0.25, 0.25)
    double = record_of(cells((1, 2, 3, 0.9, 0.9), (1, 1, 3, 0.8, 0.9)), truth(own))
    assert len(double.scores) == 1
    others = record_of(cells((1, 2, 3, 0.9, 0.25), (3, 0, 3, 0.8, 0.25), (0, 0, 5, 0.7, 0.25)), truth(own))
    assert others.found.tolist() == [True, False, False]
    assert mean_average_precision([others]) == 1


def test_the_figure_ranks_the_boxes_of_all_images_together():
    right = Record(np.array([3]), np.array([3]), np.array([0.5], np.float32), np.array([True]))
    wrong = Record(np.array([3]), np.array([3]), np.array([0.9], np.float32), np.array([False]))
    # Of two objects one is found, behind a wrong box: precision one half up to a recall of one half, 51 of 101 places.
    assert mean_average_precision([right, wrong]) == pytest.approx(51 / 101 / 2)
    assert np.mean([mean_average_precision([right]), mean_average_precision([wrong])]) == 0.5
    nothing = Record(*(np.array([], kind) for kind in (np.int64, np.int64, np.float32, bool)))
    assert np.isnan(mean_average_precision([nothing]))


def test_precision_falls_with_wrong_boxes_ahead():
    assert average_precision(np.array([True, True]), 2) == 1
    assert average_precision(np.array([False, True]), 1) == pytest.approx(0.5)
    assert average_precision(np.array([], bool), 1) == 0


def test_the_divergence_is_that_of_what_cells_say_where_there_is_an_object(task):
    def output(there, first, shift=0.0):
        found = torch.full((1, 85, 1, 1), (1 - first) / 79)
        found[:, 0], found[:, 5], found[:, 1:5] = there, first, shift
        return found

    known = output(0.8, 0.6)
    assert task.divergence(known, known).abs().item() < 1e-6
    there = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    which = 0.6 * np.log(0.6 / 0.3) + 0.4 * np.log(0.4 / 0.7)
    assert task.divergence(output(0.5, 0.3, 0.1), known).item() == pytest.approx(there + 0.8 * (which + 4 * 0.01 / 2))
    empty = output(0.0, 0.6)
    assert task.divergence(output(0.0, 0.3, 5.0), empty).item() == pytest.approx(0, abs=1e-4), "nothing is there"


def test_paths_are_needed(tmp_path):
    with pytest.raises(UserError, match="--weights"):
        load_task("examples.detection:task", tmp_path)
    with pytest.raises(UserError, match="coco128_boxes"):
        load_task("examples.detection:task", tmp_path, tmp_path / "w.safetensors")


def test_the_confidence_of_an_image_is_the_score_of_its_best_cell(task):
    output = torch.stack([cells((0, 1, 3, 0.5, 0.2), (2, 2, 7, 0.9, 0.1)), cells()])
    assert torch.allclose(task.confidences(output), torch.tensor([0.9, 0.0]))
