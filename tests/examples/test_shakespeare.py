import pytest
import torch
from safetensors.torch import save_file

from calib.data import check_batches
from calib.errors import UserError
from calib.tasks import load_task
from examples.llama import Llama
from examples.shakespeare import SIZES, read

PIECE = SIZES.context + 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_bytes(bytes(number % 251 for number in range(400 * PIECE)))
    torch.manual_seed(0)
    save_file(Llama(SIZES).state_dict(), folder / "w.safetensors")
    return folder / "text.txt", folder / "w.safetensors"


def test_the_last_tenth_of_the_text_is_held_out(files):
    trained, held_out = read(files[0])
    assert len(held_out) == 40 * PIECE
    assert trained + held_out == files[0].read_bytes()


def test_what_was_held_out_is_evaluated_and_what_was_trained_on_calibrates(files):
    task = load_task("examples.shakespeare:task", *files)
    check_batches(task.calibration())
    trained, held_out = read(files[0])
    rows = torch.cat([batch.inputs[0] for batch in task.evaluation()])
    assert rows.shape == (40, SIZES.context)
    assert bytes(rows[7].tolist()) == held_out[7 * PIECE : 8 * PIECE - 1]
    first = task.calibration()[0].inputs[0][0]
    assert bytes(first.tolist()) in trained
    assert len({name for batch in task.evaluation() for name in task.groups(batch.target)}) == 40


def test_both_tasks_have_the_same_weights_and_widths_for_groups(files):
    whole, model = (load_task(f"examples.shakespeare:{name}", *files).model() for name in ("task", "decoding"))
    tokens = torch.randint(SIZES.vocabulary, (2, 9))
    batch = load_task("examples.shakespeare:decoding", *files).evaluation()[0]
    with torch.no_grad():
        found = model(tokens, *(each[:2] for each in batch.inputs[1:]))[0]
        assert torch.allclose(found, whole(tokens), atol=1e-4)
    layers = [layer for layer in whole.modules() if isinstance(layer, torch.nn.Linear)]
    assert all(layer.in_features % 128 == 0 for layer in layers)


def test_paths_are_needed(tmp_path):
    with pytest.raises(UserError, match="--weights"):
        load_task("examples.shakespeare:task", tmp_path)
    with pytest.raises(UserError, match="plain text"):
        load_task("examples.shakespeare:decoding", tmp_path / "none.txt", tmp_path)
