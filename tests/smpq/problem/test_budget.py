import pytest

from calib.errors import UserError
from smpq.problem.budget import Budget, Limit


@pytest.mark.parametrize(
    ("text", "cost", "value", "relative"),
    [
        ("latency=0.65x", "latency", 0.65, True),
        ("latency=1.5ms", "latency", 1.5, False),
        ("latency=1500us", "latency", 1.5, False),
        ("latency=2s", "latency", 2000.0, False),
        ("latency=2.5e5ns", "latency", 0.25, False),
        ("size=0.2x", "size", 0.2, True),
        ("size=200kB", "size", 200e3, False),
        ("size=200KB", "size", 200e3, False),
        ("size=3MiB", "size", 3 * 2**20, False),
        ("size=1.5MB", "size", 1.5e6, False),
        ("size=1GB", "size", 1e9, False),
        ("size=1GiB", "size", 2**30, False),
        ("size=512", "size", 512.0, False),
        ("size=512B", "size", 512.0, False),
        ("avg_bits=3.5", "avg_bits", 3.5, False),
        ("avg_bits=.5x", "avg_bits", 0.5, True),
        ("bops=2G", "bops", 2e9, False),
        ("bops=2e9", "bops", 2e9, False),
        ("bops=1.T", "bops", 1e12, False),
        ("  bops = 7k ", "bops", 7e3, False),
        ("size=1e-3x", "size", 1e-3, True),
        ("drop=0.5", "drop", 0.5, False),
        ("drop=0.01x", "drop", 0.01, True),
        ("kl=0.02", "kl", 0.02, False),
        ("throughput=500/s", "latency", 2.0, False),
        ("throughput=2k", "latency", 0.5, False),
        ("throughput=2x", "latency", 0.5, True),
    ],
)
def test_one_limit(text, cost, value, relative):
    (limit,) = Budget.from_text(text).limits
    assert (limit.cost, limit.relative) == (cost, relative)
    assert limit.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("kl=0.1x", "give kl in nats"),
        ("drop=0.5,kl=0.1", "limits both drop and kl: choose one of them"),
        (" , ", "empty"),
        ("size", "not understood"),
        ("0.5x", "not understood"),
        ("Size=0.5x", "not understood"),
        ("energy=3", "what can be limited is latency, throughput, size, avg_bits, bops, drop, kl"),
        ("size:0.5x", "not understood"),
        ("size=", "no number above zero"),
        ("size=x", "no number above zero"),
        ("size=half", "no number above zero"),
        ("size=-1MB", "no number above zero"),
        ("size=1,5MB", "not understood"),
        ("size=nan", "no number above zero"),
        ("size=inf", "no number above zero"),
        ("size=1 MB", "no number above zero"),
        ("size=0.5x x", "no number above zero"),
        ("size=0", "above zero"),
        ("latency=0x", "above zero"),
        ("latency=0.0ms", "above zero"),
        ("latency=5", "unit '' is not known for latency; use ns, us, ms, s"),
        ("latency=5MB", "use ns, us, ms, s"),
        ("size=5ms", "use B, kB"),
        ("size=5mb", "'mb' is not known"),
        ("avg_bits=4bit", "use no unit"),
        ("bops=2g", "'g' is not known"),
        ("size=0.5x,size=1MB", "size twice"),
        ("size=0.5x latency=1ms", "no number above zero"),
        ("latency=1ms,throughput=500/s", r"latency twice \(throughput is a latency too\)"),
        ("throughput=5ms", "'ms' is not known for throughput; use k, M, or x"),
        ("throughput=1e30", "the limit must be between"),
        ("latency=5ms/s", "no number above zero"),
    ],
)
def test_what_is_wrong_is_said_in_words(text, message):
    with pytest.raises(UserError, match=message):
        Budget.from_text(text)


def test_several_limits_hold_at_once():
    budget = Budget.from_text("size=0.2x, latency=1.5ms,")
    assert [limit.cost for limit in budget.limits] == ["size", "latency"]
    assert budget.limit("latency") == Limit("latency", 1.5, relative=False)
    assert budget.limit("bops") is None
    assert str(budget) == "size=0.2x,latency=1.5ms"


def test_a_throughput_is_that_of_a_batch():
    (limit,) = Budget.from_text("throughput=500/s", 8).limits
    assert limit == Limit("latency", 16.0, relative=False)
    assert Budget.from_text("throughput=4x", 8).limits[0].value == 0.25


def test_a_fraction_is_of_the_float_model():
    assert Limit("size", 0.25, relative=True).absolute(400.0) == 100.0
    assert Limit("size", 300.0, relative=False).absolute(400.0) == 300.0


def test_a_number_too_large_to_count_is_a_user_error():
    with pytest.raises(UserError, match="size=1e999"):
        Budget.from_text("size=1e999")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("latency=0.6666666666666666x", "latency=0.6666666666666666x"),
        ("drop=0.3333333333333333,size=200kB", "drop=0.3333333333333333,size=200000B"),
        ("latency=1234.5678901234567us", "latency=1.2345678901234567ms"),
        ("bops=1e30,avg_bits=4", "bops=1e+30,avg_bits=4"),
        ("kl=1e-9", "kl=1e-09"),
    ],
)
def test_what_is_written_reads_as_the_same_budget(text, written):
    budget = Budget.from_text(text)
    assert str(budget) == written
    assert Budget.from_text(written) == budget
