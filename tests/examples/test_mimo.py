import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from calib.data import check_batches
from calib.errors import UserError
from calib.network.tracing import trace_program
from calib.task import SetTask, TrainableTask
from calib.tasks import load_task
from examples.mimo import SETTINGS, Mimo, Setting, draw, fit, follow, snr_at, wrong_bits
from examples.mimo_detector import Detector, Following

SMALL = Setting(transmit=2, receive=3, snrs_db=(0.0, 6.0, 12.0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = follow(SMALL, Detector(SMALL.values, hidden=8, buckets=3, layers=2)).eval()
    for layer in made.modules():
        if isinstance(layer, Following):
            torch.nn.init.normal_(layer.gains, std=0.1)
    return made


def test_what_is_received_and_what_the_receiver_computes():
    batch = draw(SMALL, 20_000, 5, 1)
    y, h, estimate, variance, noise = batch.inputs
    assert (y.shape, h.shape, estimate.shape, noise.shape) == ((20_000, 6), (20_000, 6, 4), (20_000, 4), (20_000, 1))
    sent = (h @ batch.target.symbols[:, :, None])[:, :, 0]
    assert 10 * math.log10(sent.square().mean() / (y - sent).square().mean()) == pytest.approx(6.0, abs=0.1)
    assert torch.equal(h[:, :3, :2], h[:, 3:, 2:])
    assert torch.equal(h[:, :3, 2:], -h[:, 3:, :2])
    # the variance that the receiver computes is that of the error
    errors = (estimate - batch.target.symbols).square()
    assert (errors.mean() / variance.mean()).item() == pytest.approx(1, abs=0.02)
    again = draw(SMALL, 20_000, 5, 1)
    assert all(torch.equal(one, other) for one, other in zip(batch.inputs, again.inputs, strict=True))
    assert not torch.equal(y[:3], draw(SMALL, 3, 6, 1).inputs[0])


def test_levels_have_power_one_and_neighbours_differ_in_one_bit():
    assert SMALL.values.tolist() == [-1, 1]
    setting = replace(SMALL, levels=4)
    assert setting.values.square().mean().item() == pytest.approx(1)
    sent = draw(setting, 500, 0).target
    exact, bits = wrong_bits(setting, sent.symbols, sent)
    assert (bits, int(exact.sum())) == (8, 0)
    beside = torch.where(sent.levels < 3, sent.levels + 1, sent.levels - 1)
    assert wrong_bits(setting, setting.values[beside], sent)[0].tolist() == [4] * 500


def test_the_data_of_the_task(model):
    task = Mimo(SMALL, model, count=32, epoch=256, batch=64)
    assert isinstance(task, SetTask)
    assert isinstance(task, TrainableTask)
    check_batches(task.calibration())
    assert [batch.target.place.unique().tolist() for batch in task.evaluation()] == [[0], [1], [2]]
    uneven = Mimo(SMALL, model, count=1500).evaluation()
    assert [len(batch.inputs[0]) for batch in uneven] == [1024, 476] * 3
    one, same, other = (list(task.training(epoch)) for epoch in (0, 0, 1))
    assert len(one) == 4
    assert torch.equal(one[3].inputs[0], same[3].inputs[0])
    assert not torch.equal(one[0].inputs[0], other[0].inputs[0])
    output = one[0].target.symbols + 0.5
    assert task.loss(output, one[0].target).tolist() == pytest.approx([0.25] * 64)
    assert task.divergence(output, one[0].target.symbols).tolist() == pytest.approx([0.25] * 64)


def test_the_figure_is_where_the_rates_cross(model):
    task = Mimo(SMALL, model)
    records = [(place, wrong, 10_000) for place, wrong in ((0, 1000), (1, 100), (2, 1))]
    # 1e-2 at 6 dB, 1e-4 at 12 dB: half-way
    assert task.metric_of(records) == pytest.approx(40 - 9, abs=0.3)
    assert task.metric_of(records * 50) == pytest.approx(40 - 9, abs=0.01)
    assert task.metric_of(records[:2]) == 40 - 6
    assert task.metric_of(records[2:]) == 40 - 12
    batch = draw(SMALL, 3, 0, 2)
    assert task.records(-batch.target.symbols, batch.target) == [(2, 4, 4)] * 3


def test_the_snr_of_an_error_rate():
    assert snr_at([0, 10, 20], [1e-1, 1e-2, 1e-4]) == pytest.approx(15)
    assert snr_at([0, 10, 20], [1e-1, 1e-3, 1e-4]) == pytest.approx(10)
    assert snr_at([0, 10], [1e-1, 1e-2], 3e-2) == pytest.approx(10 * (math.log10(1 / 0.3)))
    assert (snr_at([0, 10], [1e-1, 1e-2]), snr_at([0, 10], [1e-4, 1e-5])) == (10, 0)


def test_a_trace_computes_what_the_network_does(model):
    inputs, more = (draw(SMALL, count, 1).inputs for count in (2, 5))
    program, any_count = trace_program(model, inputs)
    assert any_count
    with torch.no_grad():
        assert torch.allclose(program.module()(*more), model(*more), atol=1e-6)


def test_gains_cancel_in_float_and_are_a_step_for_each_bucket(model):
    inputs = draw(SMALL, 200, 2).inputs
    plain = Detector(SMALL.values, hidden=8, buckets=1, layers=2)
    own = {name: tensor for name, tensor in model.state_dict().items() if "gains" not in name and name != "edges"}
    plain.load_state_dict(own, strict=False)
    with torch.no_grad():
        assert torch.allclose(plain(*inputs), model(*inputs), atol=1e-5)
    layer = Following(4, 4, 3)
    layer.linear.weight.data = torch.eye(4)
    layer.gains.data = torch.tensor([-0.1, 0.0, 0.2])
    layer.linear.register_forward_pre_hook(lambda _, given: (given[0].mul(2).round() / 2,))
    x, bucket = torch.randn(6, 1, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    steps = (torch.tensor([-1.0, 0.0, 2.0]).exp() / 2)[bucket][:, None, None]
    with torch.no_grad():
        assert torch.allclose(layer(x, bucket), (x / steps).round() * steps, atol=1e-5)


def test_buckets_are_equally_full(model):
    inputs = draw(SMALL, 3000, 3).inputs
    counts = model.bucket(inputs[3]).bincount(minlength=3)
    assert counts.min() > 800


def test_training_lowers_the_error_and_does_not_depend_on_antennas(tmp_path):
    torch.manual_seed(0)
    said = []
    trained = fit(SMALL, Detector(SMALL.values, hidden=8, buckets=2, layers=2), 120, 32, said.append)
    batch = draw(SMALL, 500, 9)
    with torch.no_grad():
        found = trained(*batch.inputs)
    errors = [(each - batch.target.symbols).square().mean() for each in (found, batch.inputs[2])]
    assert errors[0] < errors[1]
    assert len(said) == 20
    assert not any(tensor.any() for name, tensor in trained.named_parameters() if name.endswith("gains"))
    larger = draw(replace(SMALL, transmit=3, receive=3), 4, 0)
    assert trained(*larger.inputs).shape == (4, 6)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_tasks_that_have_names(name, tmp_path):
    torch.manual_seed(0)
    save_file(Detector(SETTINGS[name].values).state_dict(), tmp_path / "w.safetensors")
    task = load_task(f"examples.mimo:{name}", weights=tmp_path / "w.safetensors")
    with torch.no_grad():
        output = task.model()(*draw(task.setting, 3, 0).inputs)
    assert output.shape == (3, 2 * SETTINGS[name].transmit)
    assert output.abs().max() <= SETTINGS[name].values.max() + 1e-6


def test_weights_are_needed():
    with pytest.raises(UserError, match=r"benchmarks/train_mimo\.py"):
        load_task("examples.mimo:task")
