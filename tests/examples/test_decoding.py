import json

import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file

import examples.decoding
import examples.language
from calib.data import check_batches
from calib.errors import UserError
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.sizes import shapes_of_one, sizes_of
from calib.tasks import load_task
from deploy.lowering.export import export_float
from examples.decoding import LENGTHS, Decoder, empty_cache, generate
from examples.language import CONTEXT, STORIES, VOCABULARY, Llama
from tests.examples.test_language import PIECES

PROMPT = torch.tensor([[1, 40, 300, 7], [1, 9, 9, 280]])
INPUTS = ("tokens", "keys", "values")


DEPTH = 1


@pytest.fixture
def pair(monkeypatch):
    """A network of one block, with a cache and without."""
    for module in (examples.language, examples.decoding):
        monkeypatch.setattr(module, "DEPTH", DEPTH)
    torch.manual_seed(0)
    whole, model = Llama().eval().requires_grad_(False), Decoder().eval().requires_grad_(False)
    model.load_state_dict(whole.state_dict())
    return whole, model


def written(step, count):
    """Return the logits behind the prompt, and all tokens but the last that was written."""
    logits = list(generate(step, PROMPT, count))
    tokens = [each.argmax(-1, keepdim=True) for each in logits[:-1]]
    return torch.stack(logits, 1), torch.cat([PROMPT, *tokens], 1)


def test_a_cache_changes_nothing(pair):
    whole, model = pair
    logits, tokens = written(model, 12)
    assert torch.allclose(whole(tokens)[:, PROMPT.shape[1] - 1 :], logits, atol=1e-5)


def test_the_empty_place_is_not_seen(pair):
    _, model = pair
    keys, values = empty_cache(2)
    expected = model(PROMPT, keys, values)[0]
    assert torch.equal(model(PROMPT, keys + 3, values - 5)[0], expected)


@pytest.mark.slow
def test_one_exported_network_reads_the_prompt_and_writes(pair, tmp_path):
    _, model = pair
    shapes = [((2, new), *[(2, DEPTH, 4, places, 8)] * 2) for places, new in ((16, 1), (1, 16))]
    sizes = sizes_of([shapes_of_one(each) for each in shapes], INPUTS)
    tokens = torch.randint(0, VOCABULARY, (2, 1))
    traced, _ = trace_folded(model, (tokens, *torch.rand(2, 2, DEPTH, 4, 16, 8)), {1, 2}, inputs=sizes)
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
        {name.removesuffix(".weight"): tensor for name, tensor in Llama().state_dict().items()}, path / "w.safetensors"
    )
    return path


def test_batches_are_the_middle_of_a_text_with_what_was_before(folder):
    task = load_task("examples.decoding:task", folder, folder / "w.safetensors")
    batches = task.calibration()
    check_batches(batches)
    assert [(batch.inputs[1].shape[3], batch.inputs[0].shape[1]) for batch in batches] == list(LENGTHS)
    whole = examples.language.task(folder, folder / "w.safetensors")
    rows = torch.cat([batch.inputs[0] for batch in whole.calibration()])
    with torch.no_grad():
        expected = whole.model()(rows[16:18, : 63 + 8])[:, 63:]
        found = task.model()(*(tensor[:2] for tensor in batches[2].inputs))
    assert torch.allclose(found[0], expected, atol=1e-4), "as if the whole text had been read"
    assert torch.equal(batches[2].target[0], rows[16, 64:72])
    assert torch.allclose(
        task.loss(found, batches[2].target[:2]), whole.loss(expected, batches[2].target[:2]), atol=1e-4
    )
    assert task.divergence(found, found).tolist() == [0, 0]
    assert bool((task.divergence((found[0] * 2, *found[1:]), found) > 0).all())


def test_whole_stories_are_evaluated_with_an_empty_cache(folder):
    task = load_task("examples.decoding:task", folder, folder / "w.safetensors")
    first = task.evaluation()[0]
    assert first.inputs[0].shape[1] == CONTEXT
    assert first.inputs[1].shape[3] == 1
    whole = examples.language.task(folder, folder / "w.safetensors").evaluation()[0]
    with torch.no_grad():
        assert len(task.records(task.model()(*first.inputs), first.target)) == len(whole.target)


def test_paths_are_needed(tmp_path):
    with pytest.raises(UserError, match="--weights"):
        load_task("examples.decoding:task", tmp_path)
