import pytest

from calib.errors import UserError
from calib.formats.format import FP16, FP32, Format, formats_from_text
from calib.formats.integers import integer


@pytest.mark.parametrize(
    ("text", "canonical", "weight", "activation", "block"),
    [
        ("fp32", "fp32", 32, 32, None),
        ("FP16", "fp16", 16, 16, None),
        ("w8a8", "w8a8", 8, 8, None),
        (" w2a4 ", "w2a4", 2, 4, None),
        ("w8", "w8a16", 8, 16, None),
        ("w4", "w4a16", 4, 16, None),
        ("w4b32", "w4a16b32", 4, 16, 32),
        ("w4a16b128", "w4a16b128", 4, 16, 128),
    ],
)
def test_text_and_back(text, canonical, weight, activation, block):
    parsed = Format.from_text(text)
    assert (parsed.weight_bits, parsed.activation_bits, parsed.weight_block) == (weight, activation, block)
    assert str(parsed) == canonical
    assert Format.from_text(str(parsed)) == parsed


def test_every_width_survives_its_text():
    for weight in range(1, 9):
        for activation in (*range(2, 9), 16):
            given = Format(integer(weight), None if activation == 16 else integer(activation))
            assert Format.from_text(str(given)) == given


@pytest.mark.parametrize(
    "text",
    [
        "",
        "int8",
        "w8a8b",
        "w9a8",
        "w8a1",
        "w0a8",
        "w8a9",
        "w8a16b1",
        "w8a8b32",
        "w4a16b",
        "fp4",
        "wfp8b32",
        "wfp16",
        "w8afp16",
        "w16a16b32",
        "a8",
        "w-4",
        "w4a16b0",
        "w8a32",
    ],
)
def test_wrong_text_is_a_user_error(text):
    with pytest.raises(UserError):
        Format.from_text(text)


def test_a_message_names_large_families_by_their_ends():
    with pytest.raises(UserError) as found:
        Format.from_text("w9a8")
    assert "weights may be 1, 2, 3, 4, 5, 6, 7, 8, c1.5 to c4, fp8, m1.25 to m6, t7, t8 or z1 to z8" in str(found.value)


def test_what_a_format_says_of_itself():
    assert FP32.is_float
    assert FP16.is_float
    assert not Format.from_text("w8a8").is_float
    assert Format.from_text("w8a8").quantizes_activation
    assert not Format.from_text("w4").quantizes_activation
    assert not FP16.quantizes_activation


def test_formats_with_the_same_weights_share_a_key():
    assert Format.from_text("w4a8").weight_key == Format.from_text("w4a4").weight_key == "w4"
    assert Format.from_text("w4b32").weight_key != Format.from_text("w4b128").weight_key


def test_a_list_keeps_its_order():
    assert formats_from_text("w8a8, fp32,w4b128") == (
        Format(integer(8), integer(8)),
        FP32,
        Format(integer(4), None, 128),
    )


@pytest.mark.parametrize("text", ["", ",", "w8a8,w8a8", "w4,w4a16", "w8a8;fp32"])
def test_a_wrong_list_is_a_user_error(text):
    with pytest.raises(UserError):
        formats_from_text(text)


def test_lists_take_the_names_that_people_type():
    assert formats_from_text("int8, INT4,fp16") == formats_from_text("w8a8,w4a16,fp16")
    with pytest.raises(UserError, match="twice"):
        formats_from_text("int8,w8a8")
    with pytest.raises(UserError, match="unknown format"):
        Format.from_text("int8")  # files hold one spelling
