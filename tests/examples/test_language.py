import json

import pytest
import torch
from safetensors.torch import save_file

from calib.data import check_batches
from calib.errors import UserError
from calib.task import SetTask
from calib.tasks import load_task
from calib.tasks.language import NO_TOKEN
from examples.language import CALIBRATION_ROWS, SIZES, STORIES, Tokenizer
from examples.llama import Llama

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
    weights = {name.removesuffix(".weight"): tensor for name, tensor in Llama(SIZES).state_dict().items()}
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
    tokens, target = first.inputs[0][0].tolist(), first.target[0, 1:].tolist()
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


def test_paths_and_enough_text_are_needed(tmp_path, folder):
    with pytest.raises(UserError, match="--weights"):
        load_task("examples.language:task", tmp_path)
    with pytest.raises(UserError, match="tok512"):
        load_task("examples.language:task", tmp_path, tmp_path / "w.safetensors")
    (tmp_path / "tok512.json").write_bytes((folder / "tok512.json").read_bytes())
    (tmp_path / "tinystories.txt").write_text("the end")
    with pytest.raises(UserError, match="too short"):
        load_task("examples.language:task", tmp_path, folder / "w.safetensors").calibration()
