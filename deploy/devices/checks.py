"""Whether the results of a device are what it was asked for, and agree with themselves. A contradiction names both
sides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from calib.errors import UserError
from calib.files.storage import plain
from deploy.devices.messages import Asked, DeviceResults, Result
from deploy.runner.experiment import result_key
from deploy.runner.intervals import between_sessions
from deploy.runner.quiet import FEWEST, widened
from deploy.runner.state import throttle_reasons
from deploy.terminal.printable import printable

_TOLERANCE = 1e-6
"""Relative; figures travel as decimal text of full precision, so the same arithmetic gives the same number."""
_RESAMPLES = 20_000
_END_PERCENT = (0.4, 4.6)
"""Among all resamples the 2.5th percentile of 2,000 lies here: within six standard errors, sqrt(0.025 * 0.975 / 2000)
each.
"""


def check_results(found: DeviceResults, asked: Asked, earlier: Collection[str] | None = ()) -> dict[str, Result]:
    """Return the results of the candidates of `asked` by their key, each checked.

    1. Fingerprint and runtime are those that were asked for, no result comes twice, and each is of a candidate that was
       asked for. Results with a key in `earlier`, which were asked for before, are left out; None leaves out all
       others.
    2. Key, model and batch size belong together, and there are as many rounds as the protocol says.
    3. Every figure follows from the rounds that it came with.

    Raises UserError with the result and the two numbers that contradict each other.
    """
    if found.fingerprint != asked.fingerprint:
        raise UserError(
            f"it was measured with other models or data (fingerprint {found.fingerprint[:16]}, this run has "
            f"{asked.fingerprint[:16]}): write a bundle of this run and measure it"
        )
    if found.runtime != asked.runtime:
        raise UserError(
            f"it was measured with {found.runtime}, and {asked.runtime} was asked for: measure the last bundle of this "
            "run"
        )
    wanted = keys_of(asked)
    results: dict[str, Result] = {}
    for result in found.results:
        if result.key in results:
            raise _contradiction(result, "it comes twice")
        if result.key in wanted:
            _check_result(result, wanted[result.key], asked)
            results[result.key] = result
        elif earlier is not None and result.key not in earlier:
            raise _contradiction(result, _not_asked(result, wanted))
    return results


def keys_of(asked: Asked) -> dict[str, str]:
    """Return the name of each candidate that is asked for by the key of its result."""
    data = plain(asked)
    return {result_key(data, plain(candidate)): candidate.name for candidate in asked.candidates}


def check_measured(results: Iterable[Result]) -> None:
    """Raise UserError when one of the results says nothing about its model: memory ran out, say, or the program there
    has a bug.
    """
    for result in results:
        if result.failed is None or result.cause == "refused":
            continue
        reason = printable(result.failed)
        if result.cause == "transient":
            raise UserError(
                f"the device failed over the engine {result.name}, for the moment ({reason}): start again when it has "
                "memory to spare; what it has measured is kept"
            )
        raise UserError(
            f"the engine {result.name} was not measured ({reason}): please report this; nothing is concluded from it"
        )


def _not_asked(result: Result, wanted: dict[str, str]) -> str:
    if result.name not in wanted.values():
        return "it is not in the last bundle of this run: measure that one"
    key = next(key for key, name in wanted.items() if name == result.name)
    return (
        f"its key is {result.key}, and that of what was asked for is {key}: other inputs, batch size, protocol or "
        "settings. Measure the last bundle"
    )


def _check_result(result: Result, name: str, asked: Asked) -> None:
    if result.name != name:
        raise _contradiction(result, f"its key is that of the model {name}")
    if result.batch != asked.batch:
        raise _contradiction(result, f"its batch size is {result.batch}, and {asked.batch} was asked for")
    if result.failed is not None:
        return
    rounds, own, of_float = asked.protocol.rounds, len(result.rounds_ms), len(result.float_rounds_ms)
    if own != of_float:
        raise _contradiction(result, f"it has {own} rounds, and {of_float} of the float engine")
    if not min(rounds, FEWEST) <= own <= rounds:  # of a slow engine there are fewer than were asked for
        raise _contradiction(result, f"it has {own} rounds, and {rounds} were asked for")
    _check_figures(result)


def _check_figures(result: Result) -> None:
    assert result.ratio is not None
    assert result.ratio_interval is not None
    engine, reference = np.array(result.rounds_ms), np.array(result.float_rounds_ms)
    with np.errstate(over="ignore"):
        ratios = engine / reference
        figures = [
            ("ratio", result.ratio, float(np.median(ratios)), "the median of the ratios of its rounds"),
            ("engine_ms", result.engine_ms, float(np.median(engine)), "the median of its rounds"),
            ("float_ms", result.float_ms, float(np.median(reference)), "the median of its rounds"),
            (
                "throughput",
                result.throughput,
                1000 * result.batch / float(np.median(engine)),
                "what its batch size and engine_ms give",
            ),
        ]
    for what, told, follows, why in figures:
        if told is None or not abs(told - follows) <= _TOLERANCE * abs(follows):
            raise _contradiction(result, f"{what} is {told:.6g}, and {follows:.6g} is {why}")
    _check_interval(result.ratio, result.ratio_interval, ratios, result)
    _check_state(result)


def _check_interval(ratio: float, interval: Sequence[float], ratios: np.ndarray, result: Result) -> None:
    """The interval holds the ratio, and its ends are where a bootstrap of the rounds puts them, other sessions, and the
    slowdown.
    """
    assert result.slowdown is not None
    low, high = interval
    told = f"the interval of its ratio is {low:.6g} to {high:.6g}"
    below, above = widened((1.0, 1.0), result.slowdown)
    if not low * (1 - _TOLERANCE) <= ratio <= high * (1 + _TOLERANCE):
        raise _contradiction(result, f"{told}, and the ratio is {ratio:.6g}")
    picks = np.random.default_rng(0).integers(0, len(ratios), size=(_RESAMPLES, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    outer, inner = _END_PERCENT
    for side, end, factor, percents in (
        (0, low, below, (outer, inner)),
        (1, high, above, (100 - inner, 100 - outer)),
    ):
        least, most = (between_sessions(ratio, (at, at))[side] * factor for at in np.percentile(medians, percents))
        if not least * (1 - _TOLERANCE) <= end <= most * (1 + _TOLERANCE):
            raise _contradiction(
                result, f"{told}, and its rounds put the end {end:.6g} between {least:.6g} and {most:.6g}"
            )


def _check_state(result: Result) -> None:
    """What slowed the machine down follows from its two readings."""
    assert result.state is not None
    follows = throttle_reasons(plain(result.state.before), plain(result.state.after))
    if list(result.state.throttled) != follows:
        told = ", ".join(result.state.throttled) or "nothing"
        raise _contradiction(
            result,
            f"{told} is said to have slowed the machine down, and its clocks say {', '.join(follows) or 'nothing'}",
        )


def _contradiction(result: Result, what: str) -> UserError:
    return UserError(f"the result of {result.name} contradicts what was asked for, or itself: {what}")
