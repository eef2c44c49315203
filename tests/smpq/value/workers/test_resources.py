import pytest
import torch

from calib.errors import UserError
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.value.value import PolicyValue
from smpq.value.workers.process import pack, placed, unpack
from smpq.value.workers.resources import Resources
from tests.smpq.problems import W8A8, residual
from tests.smpq.value.test_value import Task, batches_of, space_for

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_GPU
def test_without_a_gpu_auto_is_the_cpu_and_cuda_a_user_error():
    assert Resources().evaluates_on == "cpu"
    with pytest.raises(UserError, match="no CUDA device here: use --torch-device cpu"):
        Resources(device="cuda")
    assert Resources(device="cuda", ray="auto").evaluates_on == "cuda", "the cluster may have what this machine lacks"


def value_on(device: str) -> PolicyValue:
    network = residual()
    fake = FakeQuantizer(network.traced, network.units, network.calibration, QdqRules("affine"))
    return PolicyValue(fake, space_for(network), Task(), batches_of(40, 7), device=device)


def test_on_the_cpu_nothing_is_copied():
    value = value_on("cpu")
    assert placed(value) is value


@NO_GPU
def test_a_worker_without_the_device_says_so():
    with pytest.raises(UserError, match="no CUDA device where cuda is asked for"):
        unpack(pack(value_on("cuda")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_values_of_the_cpu_within_float_tolerance():
    here, there = value_on("cpu"), placed(value_on("cuda"))
    assert here.identity != there.identity
    policies = [here.space.uniform(W8A8), here.space.uniform(here.space.reference)]
    expected = [value for _, value in here(policies)]
    assert [value for _, value in there(policies)] == pytest.approx(expected, rel=1e-2, abs=1e-5)
