import os
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest
import torch

from calib.errors import UserError
from smpq.value.workers.pool import WorkerPool
from smpq.value.workers.ray import RayWorkerSource, _import_ray
from tests.smpq.value.workers.evaluated import Refusing, compute, drawn

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the package ray: pip install 'smpq[ray]'")


@pytest.fixture(scope="module")
def ray():
    return _import_ray(own_cluster=True)


@pytest.fixture(scope="module")
def pool(ray):
    made = WorkerPool(RayWorkerSource("local", 2))
    yield made
    made.close()
    assert not ray.is_initialized()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:{port}", r"--ray 127.0.0.1:\d+: .*refused; use local, auto, host:port or ray://host:port"),
        ("ray://127.0.0.1:{port}", "--ray ray://127.0.0.1:"),
        ("auto", "--ray auto: Could not find any running Ray instance"),
        ("what is this", "--ray what is this: "),
    ],
)
def test_an_address_where_nothing_answers(ray, address, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        with pytest.raises(UserError, match=message):
            RayWorkerSource(address.format(port=taken.getsockname()[1]), 1)
    assert not ray.is_initialized()


@pytest.mark.parametrize("value", ["kl", "metric"])
def test_actors_give_the_same_numbers_to_the_last_bit(pool, value):
    here = compute(value=value)
    asked = drawn(here.space, 40)
    found = list(pool.compute(here)(asked))
    assert len(found) == 40
    assert dict(found) == dict(here(asked))
    assert len(set(pool.pids()) - {os.getpid()}) == len(pool.pids())


def test_a_part_of_the_samples_needs_no_other_copy(pool):
    here = compute(samples=400)
    assert here.folds > 1
    shared, asked = pool.compute(here), drawn(here.space, 20)
    for number in (0, here.folds - 1):
        assert dict(shared.fold(number)(asked)) == dict(here.fold(number)(asked))
    assert dict(shared(asked)) == dict(here(asked)), "an actor keeps the whole beside its parts"


def test_a_killed_actor_costs_its_own_piece_only_and_nothing_is_printed(pool, capfd):
    here = compute(samples=400)
    shared, asked = pool.compute(here), drawn(here.space, 60)
    expected = dict(here(asked))
    list(shared(asked[:2]))
    for delay in (0.0, 0.05):
        timer = threading.Timer(delay, os.kill, (pool.pids()[0], signal.SIGKILL))
        timer.start()
        found = list(shared(asked))
        timer.join()
        assert len(found) == 60
        assert dict(found) == expected
    assert capfd.readouterr() == ("", "")


def test_what_the_user_has_to_change_comes_back(pool):
    with pytest.raises(UserError, match="the labels are missing: download them"):
        list(pool.compute(compute(Refusing(), "loss"))(drawn(compute().space, 5)))


def test_more_workers_than_the_cluster_has_room_for(pool, ray):
    with pytest.raises(UserError, match=r"has room for 2 workers of one CPU each, not for 3: use fewer --workers"):
        RayWorkerSource("local", 3)
    assert RayWorkerSource("local").count == 2, "without a number, as many as there is room for"
    assert ray.is_initialized(), "a cluster that was there already stays"


@pytest.mark.slow
def test_nobody_else_gets_in(pool, ray):
    """The ports of the local cluster ask for a token."""
    assert pool.count == 2
    address = ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init({address!r}); print('in', ray.cluster_resources()['CPU'])"
    stranger = {name: text for name, text in os.environ.items() if not name.startswith("RAY_AUTH")}
    for environment, expected in ((stranger, False), (dict(os.environ), True)):
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert (result.stdout == "in 2.0\n") is expected, result.stderr
