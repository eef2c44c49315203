import json

import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file

from calib.errors import UserError
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.sizes import shapes_of_one, sizes_of
from calib.tasks import load_task
from calib.tasks.decoding import generate
from deploy.lowering.export import export_float
from examples.decoding import Decoder, empty_cache
from examples.language import SIZES, STORIES
from examples.llama import Llama
from tests.examples.test_language import PIECES

PROMPT = torch.tensor([[1, 40, 300, 7], [1, 9, 9, 280]])
INPUTS = ("tokens", "cache_0", "cache_1")
SMALL = SIZES._replace(depth=1)


@pytest.fixture
def pair():
    """A network of one block, with a cache and without."""
    torch.manual_seed(0)
    whole, model = (kind(SMALL).eval().requires_grad_(False) for kind in (Llama, Decoder))
    model.load_state_dict(whole.state_dict())
    return whole, model


def written(step, count):
    """Return the logits behind the prompt, and all tokens but the last that was written."""
    logits = list(generate(step, PROMPT, count, empty_cache(SMALL, len(PROMPT))))
    tokens = [each.argmax(-1, keepdim=True) for each in logits[:-1]]
    return torch.stack(logits, 1), torch.cat([PROMPT, *tokens], 1)


def test_a_cache_changes_nothing(pair):
    whole, model = pair
    logits, tokens = written(model, 12)
    assert torch.allclose(whole(tokens)[:, PROMPT.shape[1] - 1 :], logits, atol=1e-5)


def test_the_empty_place_is_not_seen(pair):
    _, model = pair
    keys, values = empty_cache(SMALL, 2)
    expected = model(PROMPT, keys, values)[0]
    assert torch.equal(model(PROMPT, keys + 3, values - 5)[0], expected)


@pytest.mark.slow
def test_one_exported_network_reads_the_prompt_and_writes(pair, tmp_path):
    _, model = pair
    shapes = [((2, new), *[(2, 4, places, 8)] * 2) for places, new in ((16, 1), (1, 16))]
    sizes = sizes_of([shapes_of_one(each) for each in shapes], INPUTS)
    tokens = torch.randint(0, SMALL.vocabulary, (2, 1))
    traced, _ = trace_folded(model, (tokens, *torch.rand(2, 2, 4, 16, 8)), {1, 2}, inputs=sizes)
    export_float(traced, find_units(traced)[0], tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])

    def step(*inputs):
        given = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, given)))

    expected, tokens = written(model, 12)
    found, same = written(step, 12)
    assert torch.equal(tokens, same)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stories")
    (path / "tok512.json").write_text(json.dumps({"tokens": [[piece.hex(), 0.0] for piece in PIECES]}))
    stories = ["the cat"] * STORIES
    (path / "tinystories.txt").write_text("\n<|endoftext|>\n".join([*stories, "then " * 9000]))
    torch.manual_seed(0)
    save_file(
        {name.removesuffix(".weight"): tensor for name, tensor in Llama(SIZES).state_dict().items()},
        path / "w.safetensors",
    )
    return path


@pytest.mark.slow
def test_the_task_is_that_of_the_stories_with_a_cache(folder):
    task = load_task("examples.decoding:task", folder, folder / "w.safetensors")
    whole = load_task("examples.language:task", folder, folder / "w.safetensors")
    first, plain = task.evaluation()[0], whole.evaluation()[0]
    with torch.no_grad():
        found, expected = task.model()(*first.inputs), whole.model()(*plain.inputs)
    assert torch.allclose(found[0], expected, atol=1e-4)
    assert task.metric_of(task.records(found, first.target)) == pytest.approx(
        whole.metric_of(whole.records(expected, plain.target)), abs=1e-5
    )
    assert [batch.inputs[1].shape for batch in task.calibration()][-1] == (8, 4, SIZES.context, 8)


def test_paths_are_needed(tmp_path):
    with pytest.raises(UserError, match="--weights"):
        load_task("examples.decoding:task", tmp_path)
