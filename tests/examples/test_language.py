import json
import math

import pytest
import torch
from safetensors.torch import save_file

from calib.data import check_batches
from calib.errors import UserError
from calib.network.tracing import trace_program
from calib.task import SetTask
from calib.tasks import load_task
from examples.language import CALIBRATION_ROWS, NO_TOKEN, STORIES, Llama, Tokenizer, rotated

PIECES = [
    b"<unk>",
    b"\n<s>\n",
    b"\n</s>\n",
    *(bytes([byte]) for byte in range(256)),
    b" t",
    b"he",
    b" the",
    b"the",
    b"bc",
    b"ab",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stories")
    tokens = [[piece.hex(), float(-place)] for place, piece in enumerate(PIECES)]
    (path / "tok512.json").write_text(json.dumps({"tokens": tokens}))
    stories = ["the cat", "a", *["the end of it"] * (STORIES - 2), "then " * 9000]
    (path / "tinystories.txt").write_text("\n<|endoftext|>\n".join(stories))
    torch.manual_seed(0)
    weights = {name.removesuffix(".weight"): tensor for name, tensor in Llama().state_dict().items()}
    save_file(weights, path / "w.safetensors")
    return path


@pytest.fixture(scope="module")
def task(folder):
    return load_task("examples.language:task", folder, folder / "w.safetensors")


def test_stories_are_evaluated_and_the_text_behind_them_calibrates(task):
    assert isinstance(task, SetTask)
    check_batches(task.calibration())
    first = next(iter(task.evaluation()))
    assert sum(len(batch.inputs[0]) for batch in task.evaluation()) == STORIES
    assert sum(len(batch.inputs[0]) for batch in task.calibration()) == CALIBRATION_ROWS
    tokens, target = first.inputs[0][0].tolist(), first.target[0].tolist()
    assert tokens[:5] == [1, 261, ord(" ") + 3, ord("c") + 3, ord("a") + 3]
    assert target[:5] == [*tokens[1:5], ord("t") + 3]
    assert set(target[5:]) == {NO_TOKEN}
    assert all((batch.target != NO_TOKEN).all() for batch in task.calibration())


def test_the_best_pair_is_merged_first_and_unknown_letters_are_bytes(folder):
    tokenizer = Tokenizer(folder / "tok512.json")
    assert tokenizer.encode("the") == [1, 261]  # ` t`, `he`, then both
    assert tokenizer.encode("abc") == [1, 35, ord("a") + 3, 263]  # not `ab`, which comes first and scores less
    assert tokenizer.encode("x the") == [1, 35, ord("x") + 3, 261]
    assert tokenizer.encode("é") == [1, 35, 0xC3 + 3, 0xA9 + 3]


@pytest.mark.slow
def test_a_trace_computes_what_the_network_does(task):
    model, tokens = task.model(), task.evaluation()[0].inputs[0][:2, :16]
    program, _ = trace_program(model, (tokens,), free=False)
    with torch.no_grad():
        assert torch.allclose(program.module()(tokens), model(tokens), atol=1e-5)


def test_what_comes_later_changes_nothing(task):
    model, tokens = task.model(), torch.arange(24)[None]
    later = tokens.clone()
    later[0, 12:] += 100
    with torch.no_grad():
        one, other = model(tokens), model(later)
    assert torch.allclose(one[:, :12], other[:, :12], atol=1e-5)
    assert not torch.allclose(one[:, 12:], other[:, 12:], atol=1e-5)


def test_places_turn_pairs_and_products_know_the_distance_alone():
    angles = torch.outer(torch.arange(6), torch.tensor([1.0, 0.1]))
    q, k = torch.rand(4), torch.rand(4)
    turned = [rotated(x.expand(1, 1, 6, 4), angles.cos(), angles.sin())[0, 0] for x in (q, k)]
    products = turned[0] @ turned[1].T
    assert torch.allclose(products[2, 1], products[5, 4])
    assert products[0, 0].item() == pytest.approx((q @ k).item(), rel=1e-5)
    assert not torch.allclose(products[2, 1], products[1, 2])


def test_the_figure_is_the_mean_over_tokens(task):
    target = torch.full((2, 8), NO_TOKEN)
    target[0, :6], target[1, :2] = 5, 7
    output = torch.zeros(2, 8, 512)
    output[1, :, 7] = 100.0  # certain, and right
    records = task.records(output, target)
    assert [tokens for _, tokens in records] == [6, 2]
    assert task.metric_of(records) == pytest.approx(-6 * math.log(512) / 8)
    assert task.loss(output, target).tolist() == pytest.approx([math.log(512), 0], abs=1e-6)


def test_paths_and_enough_text_are_needed(tmp_path, folder):
    with pytest.raises(UserError, match="--weights"):
        load_task("examples.language:task", tmp_path)
    with pytest.raises(UserError, match="tok512"):
        load_task("examples.language:task", tmp_path, tmp_path / "w.safetensors")
    (tmp_path / "tok512.json").write_bytes((folder / "tok512.json").read_bytes())
    (tmp_path / "tinystories.txt").write_text("the end")
    with pytest.raises(UserError, match="too short"):
        load_task("examples.language:task", tmp_path, folder / "w.safetensors").calibration()
