import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from calib.data import check_batches
from calib.errors import UserError
from calib.network.tracing import trace_program
from calib.task import SetTask
from calib.tasks import load_task
from examples.denoising import MARGIN, TILE, DnCnn, noisy, pieces
from tests.examples.archives import archive_of

SHAPES = ((160, 160), (200, 160))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("set12")
    numbers = np.random.default_rng(0)
    images = {f"{place}.png": numbers.integers(0, 256, shape, dtype=np.uint8) for place, shape in enumerate(SHAPES)}
    archive_of(images, path / "set12.tar")
    archive_of({"photo.png": numbers.integers(0, 256, (170, 180, 3), dtype=np.uint8)}, path / "coco128.tar")
    torch.manual_seed(0)
    save_file(DnCnn().state_dict(), path / "w.safetensors")
    return path


@pytest.fixture(scope="module")
def task(folder):
    return load_task("examples.denoising:task", folder, folder / "w.safetensors")


def test_both_loaders_give_tiles_of_one_size(task):
    assert isinstance(task, SetTask)
    check_batches(task.calibration())
    (seen,), (calibrating,) = task.evaluation(), task.calibration()
    assert seen.inputs[0].shape == (3, 1, TILE, TILE)  # one of the first image, two of the other
    assert calibrating.inputs[0].shape == (1, 1, TILE, TILE)
    assert task.groups(seen.target) == [0, 1, 1]


@pytest.mark.parametrize("length", [160, 161, 200, 256, 286, 287, 321, 512])
def test_of_each_side_every_pixel_counts_once_and_far_from_inner_edges(length):
    found = pieces(length)
    own = [start + place for start, part in found for place in range(TILE)[part]]
    assert own == list(range(length))
    assert all(0 <= start <= length - TILE for start, _ in found)
    for (_, before), (_, after) in pairwise(found):
        assert before.stop <= TILE - MARGIN
        assert after.start >= MARGIN


def test_a_network_gives_of_the_tiles_what_it_gives_of_the_image(task, monkeypatch):
    monkeypatch.setattr("examples.denoising.WIDTH", 9)
    model, (batch,) = DnCnn(), task.evaluation()
    for layer in model.model[::2]:  # as large at the end as at the beginning, so that an edge would show
        torch.nn.init.orthogonal_(layer.weight.data.view(layer.out_channels, -1), 1.4)
    # Put the second image together from its two tiles, which stand one above the other.
    dirty = torch.cat([batch.inputs[0][1, 0], batch.inputs[0][2, 0, TILE - 40 :]])[None, None]
    with torch.no_grad():
        of_tiles, whole = model(batch.inputs[0])[1:, 0], model(dirty)[0, 0]
    counts = batch.target.counts[1:, 0].bool()
    assert torch.allclose(of_tiles[0][counts[0]], whole[:TILE][counts[0]], atol=1e-4)
    assert torch.allclose(of_tiles[1][counts[1]], whole[40:][counts[1]], atol=1e-4)
    assert not torch.allclose(of_tiles[0], whole[:TILE], atol=1e-4)


def test_a_trace_computes_what_the_network_does(task):
    model, x = task.model(), torch.rand(3, 1, 16, 16)
    program, any_count = trace_program(model, (x,))
    assert any_count
    with torch.no_grad():
        assert torch.allclose(program.module()(x[:2]), model(x[:2]), atol=1e-6)


def test_the_figure_is_the_mean_over_whole_images(task):
    (batch,) = task.evaluation()
    clean = batch.target.clean
    # Image 0 is wrong by 10/255 everywhere, image 1 by 20/255 in one of its two tiles.
    output = torch.where(clean > 0.5, clean - 10 / 255, clean + 10 / 255)
    output[1] = torch.where(clean[1] > 0.5, clean[1] - 20 / 255, clean[1] + 20 / 255)
    output[2] = clean[2]
    share = batch.target.counts[1].sum().item() / (200 * 160)
    expected = [20 * math.log10(255 / 10), 20 * math.log10(255 / 20) - 10 * math.log10(share)]
    records = task.records(output, batch.target)
    assert task.metric_of(records) == pytest.approx(sum(expected) / 2)
    assert task.metric_of([*records, records[0]]) == pytest.approx((2 * expected[0] + expected[1]) / 3)
    assert task.loss(output, batch.target).tolist() == pytest.approx([(10 / 255) ** 2, (20 / 255) ** 2, 0])


def test_the_noise_is_the_same_each_time_and_of_the_published_strength():
    dirty = noisy(torch.full((160, 160), 0.5))
    assert torch.equal(dirty, noisy(torch.full((160, 160), 0.5)))
    assert (dirty - 0.5).std().item() == pytest.approx(25 / 255, rel=0.02)


def test_paths_are_needed(tmp_path):
    with pytest.raises(UserError, match="--weights"):
        load_task("examples.denoising:task", tmp_path)
    with pytest.raises(UserError, match="set12"):
        load_task("examples.denoising:task", tmp_path, tmp_path / "w.safetensors")
