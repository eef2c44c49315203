"""The file about calibration data that were made without a sample of the user's."""

from __future__ import annotations

from typing import Literal

from calib.files.storage import Amount, Count, FileRecord, Positive, Record


class InputRow(Record, frozen=True, kw_only=True):
    """`calib.synthetic.kinds.InputKind`: `mean` and `deviation` are those of floats, `low` and `high` the ends of
    integers.
    """

    shape: tuple[Positive, ...]
    dtype: str
    mean: float
    deviation: Amount
    low: int
    high: int


class SyntheticFile(FileRecord, frozen=True, kw_only=True):
    """`synthetic.json`: the calibration data of a run with --data-free; `synthetic.safetensors` holds them.

    `source` says where the kinds of the inputs come from. The samples, `batch` of them at a time, are fitted to what
    `norms` calls of BatchNorm layers keep. `noise_mismatch` and `mismatch` are 0 where they fit exactly
    (`calib.synthetic.batches`): of the noise that they began as, and of themselves. `evaluation`: whether the task
    gives evaluation data, without which nothing is verified.
    """

    NAME = "synthetic.json"
    MADE_BY = "smpq run --data-free"

    samples: Positive
    batch: Positive
    seed: Count
    inputs: tuple[InputRow, ...]
    source: Literal["example_inputs()", "--shape"]
    norms: Count
    noise_mismatch: Amount
    mismatch: Amount
    evaluation: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples % self.batch or self.mismatch > self.noise_mismatch:
            raise ValueError("samples come in whole batches, and are nearer to the norms than noise")
