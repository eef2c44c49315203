"""A calibrated network whose policies are reconstructed, and the figure of its task before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from records import cpu_model

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import Format
from calib.network.attention import find_attention
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.task import Task
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.reconstruction.reconstruct import reconstruct
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.finetune import Subject

RULES = QdqRules("affine")
Formats = Mapping[str, Format]


class Bench:
    """The network of a task, calibrated; the evaluation data are used for the figures of a row and for nothing else.

    `attention`: the products of attention are quantised too.
    """

    def __init__(self, task: Task, rounding: str = "gptq", *, attention: bool = False) -> None:
        self.task = task
        self.batches = list(task.calibration())
        self.original = task.model()
        example = tuple(tensor[:2] for tensor in self.batches[0].inputs)
        self.traced, self.pairs = trace_folded(self.original, example, attention=attention)
        self.units, self.skipped = find_units(self.traced)
        self.attention = find_attention(self.traced, self.units)[0] if attention else ()
        self.calibrate(rounding)

    def calibrate(self, rounding: str) -> None:
        """Round all weights from now on by this method."""
        settings = CalibrationSettings(rounding=rounding)  # type: ignore[arg-type]
        self.calibration = Calibration(self.traced, self.units, self.batches, settings, attention=self.attention)

    def uniform(self, text: str, image_bits: int | None = None) -> dict[str, Format]:
        """Return one format of all layers, but for the activations of the first one where `image_bits` says so."""
        chosen = Format.from_text(text)
        first = chosen if image_bits is None else Format.from_text(f"w{chosen.weight_bits}a{image_bits}")
        return {unit.path: first if unit is self.units[0] else chosen for unit in self.units}

    def fake(self) -> FakeQuantizer:
        """Return the quantised network as it was calibrated."""
        return FakeQuantizer(self.traced, self.units, self.calibration, RULES)

    def figure(self, fake: FakeQuantizer | None = None, formats: Formats | None = None) -> float:
        """Return the task's metric on its evaluation data; of the float network where no formats are given."""
        traced = self.traced if fake is None else fake.traced
        edits = None if fake is None or formats is None else fake.edits(fake.plan(formats))
        found: list[Any] = []
        with torch.no_grad():
            for batch in self.task.evaluation() or ():
                output = traced.run(batch.inputs) if edits is None else traced.run(batch.inputs, edits)
                if hasattr(self.task, "records"):
                    found += self.task.records(output, batch.target)
                else:
                    found += self.task.metric(output, batch.target).tolist()  # type: ignore[attr-defined]
        if hasattr(self.task, "records"):
            return float(self.task.metric_of(found))  # type: ignore[attr-defined]
        return sum(found) / len(found)

    def percent(self, formats: Formats) -> float:
        """Return the figure of a policy as it was calibrated, in %."""
        return round(100 * self.figure(self.fake(), formats), 2)

    def reconstructed(self, formats: Formats, settings: ReconstructionSettings, scale: float = 100) -> dict[str, Any]:
        """Reconstruct a policy and return what came of it; the figure is multiplied by `scale`."""
        subject = Subject(
            self.task, self.traced, self.units, self.original, self.pairs, self.fake().plan(formats), "", "benchmark"
        )
        start = time.process_time()
        found = reconstruct(subject, self.batches, settings)
        seconds = time.process_time() - start
        tuned = FakeQuantizer(found.traced(self.traced), self.units, found.calibration(self.calibration), RULES)
        return {
            "top1": round(scale * self.figure(tuned, formats), 3),
            "kl_before": -found.before.value, "kl": -found.after.value, "cpu_seconds": round(seconds, 1),
            "cpu": cpu_model(), "settings": asdict(settings),
        }  # fmt: skip
