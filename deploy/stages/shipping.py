"""Ship: put the plan that was measured, with what belongs to it, into the run."""

from __future__ import annotations

import shutil
from pathlib import Path

from calib.files.storage import writing
from deploy.devices.messages import Result
from deploy.devices.products import ProductFile, find_product
from deploy.files.engine import BuiltRow
from deploy.lowering.onnx_files import sha256
from deploy.run.workspace import Workspace
from deploy.runner.product import ENGINE_PLAN, link_or_copy


def discard_other(workspace: Workspace) -> None:
    """Remove the plan of a model that is no longer the run's: nobody should carry it away.

    A plan that this machine has built is replaced by its build; one that came from a device goes with its product.
    """
    model = workspace.run.file(workspace.backend.names.model)
    product = find_product(workspace.run.file(workspace.backend.names.product))
    if product is None or not model.is_file() or not sha256(model).startswith(product.name):
        _discard(workspace)


def shipped(workspace: Workspace) -> Path | None:
    """Return the directory of the plan that was measured, None where the run has none."""
    directory = workspace.run.file(workspace.backend.names.product)
    return directory if find_product(directory) is not None else None


def _discard(workspace: Workspace) -> None:
    names, run = workspace.backend.names, workspace.run
    directory = run.file(names.product)
    if directory.is_dir():
        with writing(directory):
            shutil.rmtree(directory)
            for name in names.engines.values() if workspace.builds_on_device else ():
                run.file(name).unlink(missing_ok=True)


def ship(workspace: Workspace, result: Result) -> dict[str, BuiltRow]:
    """Put the product of a result into `engine.<target>/`, and its plan beside it under the engine's name; returns its
    row of `build.json`.

    1. Nothing is done for a runtime without plans.
    2. Where the plan is gone, there is no product, and the last one does not stay: a warning says how to get one.
    3. The plan gets no name beside the product when its GPU is none that the target is for; a warning says so.
    """
    if result.plan_sha256 is None:
        return {}
    names, run = workspace.backend.names, workspace.run
    directory = run.file(names.product)
    product = find_product(directory)
    if product is None or (product.name, product.plan_sha256) != (result.name, result.plan_sha256):
        product = workspace.device.fetch_engine(result, directory)
    if product is None:
        _discard(workspace)
        workspace.progress.warn(
            "the plan that was measured is neither on the device nor here any more: smpq measure puts another one "
            f"into {directory}"
        )
        return {}
    name = names.engines.get(product.gpu.sm if product.gpu is not None else "", names.engines.get(""))
    if name is None:
        known = ", ".join(names.engines)
        workspace.progress.warn(
            f"the plan that was measured is for {_gpu(product)}, and the run's engines are for {known}: it is in "
            f"{directory}"
        )
        return {}
    with writing(run.file(name)):
        link_or_copy(directory / ENGINE_PLAN, run.file(name))
    return {name: _row(product)}


def _gpu(product: ProductFile) -> str:
    return f"{product.gpu.name} {product.gpu.sm}" if product.gpu is not None else "no GPU"


def _row(product: ProductFile) -> BuiltRow:
    return BuiltRow(
        sha256=product.plan_sha256,
        size_bytes=product.files[ENGINE_PLAN].size_bytes,
        build_seconds=product.build_seconds,
        versions={product.runtime: product.version},
        warnings=product.warnings,
    )
