"""The whole-engine measurements that a run has made: `measurements.json`, and the latency model fitted to it."""

from __future__ import annotations

from calib.errors import UserError
from deploy.latency import LatencyModel, Observation, fit, neighbours
from deploy.measure import machine
from deploy.prepare import Prepared
from smpq.policy import Policy


def latency_model(prepared: Prepared) -> LatencyModel:
    """Fit the latency model to what the run has measured; UserError when that is nothing."""
    known = read_observations(prepared)
    if not known:
        raise UserError("this run has measured no engine yet, so latency cannot be predicted: use smpq run, or smpq measure first")
    reference = Observation(prepared.space.uniform(prepared.space.reference), 1.0, 0.0)
    return fit(prepared.space, neighbours(prepared.traced, prepared.space), [reference, *known])


def read_observations(prepared: Prepared) -> list[Observation]:
    """Read the whole-engine measurements of this run that were made with the same model on the same machine."""
    if not prepared.run.has("measurements.json"):
        return []
    record = prepared.run.read_json("measurements.json", keys=["fingerprint", "machine", "observations", "float_ms"])
    if record["fingerprint"] != prepared.fingerprint:
        prepared.progress.warn("measurements.json was made with other weights or data: measuring again")
        return []
    if record["machine"] != machine():
        prepared.progress.warn(f"measurements.json was made on another machine ({record['machine']}): measuring again")
        return []
    try:
        return [
            Observation(Policy.from_json(entry["policy"], prepared.space), float(entry["ratio"]), float(entry["standard_error"]))
            for entry in record["observations"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"measurements.json is damaged ({error!r}): delete it to measure again") from error


def keep_observation(prepared: Prepared, observation: Observation, float_ms: float) -> None:
    """Add one measurement to `measurements.json`, in place of an earlier one of the same policy."""
    kept = [o for o in read_observations(prepared) if o.policy.key() != observation.policy.key()]
    rows = [
        {"policy": o.policy.to_json(prepared.space.groups), "ratio": o.ratio, "standard_error": o.standard_error}
        for o in (*kept, observation)
    ]
    record = {
        "schema": 1, "fingerprint": prepared.fingerprint, "machine": machine(), "float_ms": float_ms, "observations": rows,
    }  # fmt: skip
    prepared.run.write_json("measurements.json", record)
