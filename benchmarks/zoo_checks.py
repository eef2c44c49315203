"""What `benchmarks/zoo.py` looks at in a network that has become an engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.calibrate import Calibration, CalibrationSettings
from calib.errors import UserError
from calib.formats.format import formats_from_text
from calib.task import Batch
from deploy.backends import backend_of
from deploy.backends.base import BuildFailed
from deploy.run.float_onnx import export_float_model
from deploy.run.workspace import Workspace, rules_of
from deploy.stages.stage_runners import stage_runners
from deploy.targets.offers import refusal
from deploy.targets.target import target_from_name
from smpq.problem.groups import space_from_formats
from smpq.problem.joins import find_joins
from smpq.problem.policy import Policy, Space
from smpq.quantized.quantize import FakeQuantizer

EIGHT_BITS = "w8a8,w8a16b128,w8a16b64,w8a16b32,w8a16"
"""The first that a layer can have; an embedding has no activations."""
SM = "sm89"
WORST_COSINE = 0.999
_SHAKE = 1e-6


def first_output(output: Any, target: Tensor) -> Tensor:
    """Minus the mean square of the first output for each sample: no metric of use, but one of any output."""
    leaf = next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and len(leaf) == len(target))
    return -leaf.detach().double().reshape(len(target), -1).square().mean(1).log1p()


def eight_bits(space: Space) -> Policy:
    """Return the policy of 8 bits wherever they are offered."""
    return Policy({group.name: space.formats[group.name][0] for group in space.groups})


def unnamed(workspace: Workspace, module: nn.Module) -> list[str]:
    """Return the weights, parameters of two dimensions or more, that are neither units nor named as skipped."""
    traced, units = workspace.traced, workspace.space.units
    quantised = {traced.parameter_names[unit.weight] for unit in units}
    named = [entry.path for entry in workspace.skipped]
    used = {name for node, name in traced.parameter_names.items() if traced.nodes[node].users}
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.dim() >= 2
        and name in used - quantised
        and not any(name == path or name.startswith(f"{path}.") for path in named)
    ]


def cosines(workspace: Workspace, policy: Policy, scratch: Path) -> dict[str, Any]:
    """Return cosines between the outputs of stages over all evaluation data, each that of the output that is furthest
    off; `spread` is the share of an output that differs from sample to sample, the least of all outputs.

    Where the engine is further off than `WORST_COSINE`, `shaken` is the cosine of the fake-quantised model with itself
    on inputs that differ by a millionth of each value: a network that rounds after each layer may enlarge that, and
    then the engine's sums, which are in another order, cannot be told from a mistake by this figure. A first layer that
    rounds its input may hide that change: `resummed` is the same with torch's own sums in another order, without
    oneDNN.
    """
    runners = stage_runners(workspace, policy, scratch)
    batches = list(workspace.task.evaluation())
    outputs: dict[str, list[Tensor]] = {}
    for stage in ("eager", "fake_quant", "onnx", "engine"):
        runner = runners[stage]
        if isinstance(runner, str):
            raise UserError(f"{stage}: {runner}")
        outputs[stage] = _outputs(runner, batches)
    pairs = {
        "engine_and_fake_quant": ("engine", "fake_quant"),
        "onnx_and_fake_quant": ("onnx", "fake_quant"),
        "fake_quant_and_float": ("fake_quant", "eager"),
    }
    found: dict[str, Any] = {
        name: round(min(map(_cosine, outputs[one], outputs[two])), 7) for name, (one, two) in pairs.items()
    }
    found["spread"] = round(min(map(_spread, outputs["eager"])), 4)
    if found["engine_and_fake_quant"] < WORST_COSINE:
        other = _outputs(runners["fake_quant"], [_shaken(batch) for batch in batches])
        found["shaken"] = round(min(map(_cosine, other, outputs["fake_quant"])), 7)
        with torch.backends.mkldnn.flags(enabled=False):
            other = _outputs(runners["fake_quant"], batches)
        found["resummed"] = round(min(map(_cosine, other, outputs["fake_quant"])), 7)
    return found


def _outputs(runner: Any, batches: Sequence[Batch]) -> list[Tensor]:
    parts = [_leaves(runner(batch)) for batch in batches]
    return [
        torch.cat([leaf.reshape(-1) if leaf.dim() == 0 else leaf for leaf in column])
        for column in zip(*parts, strict=True)
    ]


def _shaken(batch: Batch) -> Batch:
    """Return the batch with its floats changed by a millionth, the same way each time."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        tuple(
            each * (1 + _SHAKE * torch.randn(each.shape, generator=generator)) if each.is_floating_point() else each
            for each in batch.inputs
        ),
        batch.target,
    )


def _leaves(output: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf.double() for leaf in leaves if leaf.is_floating_point() and leaf.numel()]


def _cosine(one: Tensor, two: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0))


def _spread(output: Tensor) -> float:
    return float((output - output.mean(0)).norm() / output.norm()) if len(output) > 1 else 0.0


def plan_for_sm89(workspace: Workspace, scratch: Path) -> dict[str, Any]:
    """Return what TensorRT-RTX makes of the network for SM89, which needs no GPU: how many units have 8 bits there, and
    the kernel that was planned; the other kernels, and why no plan was built.

    The layers are those of the open run. Ranges are from minimum to maximum, and weights are rounded to nearest.
    """
    target = target_from_name("tensorrt-rtx", (SM,))
    traced, groups = workspace.traced, workspace.space.groups
    try:
        space, _ = space_from_formats(
            groups,
            formats_from_text(f"{EIGHT_BITS},fp16"),
            target.reference,
            lambda unit, chosen: refusal(target, unit, chosen, size_only=False),
            find_joins(traced, groups, rules_of(target)),
        )
    except UserError as error:
        return {"refused": str(error)[:300]}
    policy = eight_bits(space)
    formats = policy.by_unit(groups)
    settings = CalibrationSettings("minmax", "nearest", target.activation_scheme)
    calibration = Calibration(traced, space.units, workspace.batches, settings)
    fake = FakeQuantizer(traced, space.units, calibration, rules_of(target))
    backend, model, plan = backend_of(target), scratch / "model.rtx.onnx", scratch / "engine.plan"
    found: dict[str, Any] = {"quantised": sum(not chosen.is_float for chosen in formats.values()), "of": len(formats)}
    try:
        backend.lower(export_float_model(workspace), fake.plan(formats, policy.float_joins), space.units, model)
    except UserError as error:
        return {**found, "refused": str(error)[:300]}
    built = backend.build(model, plan, SM)
    if isinstance(built, BuildFailed):
        return {**found, "not_built": built.reason[:300]}
    kernels = backend.unit_kernels(plan, built.layers, space.units, formats)
    others = {kernel.path: f"{formats[kernel.path]}: {kernel.kernel}" for kernel in kernels if not kernel.agrees}
    return {**found, "as_planned": len(kernels) - len(others), "others": others}


def ratio_to_float(workspace: Workspace, policy: Policy) -> dict[str, Any]:
    """Return the time of the engine by that of the float engine, the two in turn, with its 95 % interval."""
    (result,) = workspace.bench.time([workspace.candidates.candidate(policy)])
    if result.ratio is None or result.ratio_interval is None:
        raise UserError(f"the engine cannot be timed: {result.failed}")
    return {"latency_ratio": round(result.ratio, 3), "interval": [round(end, 3) for end in result.ratio_interval]}
