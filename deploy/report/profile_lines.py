"""A profile as lines for a terminal: the kernels that take longest, what they are for, and what launching costs."""

from __future__ import annotations

from collections import defaultdict

from deploy.files.profile import ProfiledKernel, ProfileFile, Role
from deploy.report.wording import counted, shown

_LONGEST_LAYER, _LONGEST_KERNEL = 36, 80
_LAUNCH_BOUND = 0.9
"""From this share on the GPU is taken to wait for the host."""
ROLES: dict[Role, str] = {
    "layer": "layers of the model",
    "quantize": "quantising and dequantising",
    "reformat": "reformatting",
    "copy": "copying",
    "other": "other work, as pooling and sums",
}


def profile_lines(profile: ProfileFile) -> list[str]:
    """Return a table with the longest kernel first, the sum for each role, and the share of the launch."""
    rows = sorted(profile.kernels, key=lambda kernel: -(kernel.ms or 0.0))
    lines = [f"{'ms':>9} {'share':>6}  {'role':<9} {'planned':<9} {'found':<17} {'layer':<{_LONGEST_LAYER}} kernel"]
    for kernel in rows:
        ms, share = time_of(kernel), share_of(profile, kernel)
        planned, found = formats_of(profile, kernel)
        name = cut(", ".join(kernel.units) or "-", _LONGEST_LAYER)
        called = cut(f"{kernel.kind} {kernel.name}", _LONGEST_KERNEL)
        lines.append(f"{ms:>9} {share:>6}  {kernel.role:<9} {planned:<9} {found:<17} {name:<{_LONGEST_LAYER}} {called}")
    lines += [
        "",
        *_sums(profile),
        *_wrong(profile),
        launch_sentence(profile),
        f"on {shown(profile.machine)}, {shown(profile.clock)}",
    ]
    return [line.rstrip() for line in lines]


def time_of(kernel: ProfiledKernel) -> str:
    """Write the milliseconds of a kernel; a dash where the profiler did not tell them."""
    return f"{kernel.ms:.4f}" if kernel.ms is not None else "–"


def share_of(profile: ProfileFile, kernel: ProfiledKernel) -> str:
    """Write the share of a kernel in the profiled time."""
    return f"{100 * kernel.ms / profile.profiled_ms:.1f} %" if kernel.ms is not None else "–"


def formats_of(profile: ProfileFile, kernel: ProfiledKernel) -> tuple[str, str]:
    """Return the planned formats of the layers that a kernel computes, and what it computes in; marked where they are
    not the same.
    """
    if kernel.role != "layer":
        return "", " -> ".join(shown("/".join(types)) for types in (kernel.inputs, kernel.outputs) if types)
    units = [profile.units[path] for path in kernel.units]
    found = "/".join(dict.fromkeys(unit.found for unit in units))
    return "/".join(dict.fromkeys(unit.planned for unit in units)), found if all(
        unit.agrees for unit in units
    ) else f"{found} (!)"


def launch_sentence(profile: ProfileFile) -> str:
    """Say what a call takes on the GPU, and the share of enqueueing it."""
    call = f"a call takes {profile.engine_ms:.4g} ms ({profile.engine_ms / profile.float_ms:.3f}x of float)"
    if profile.enqueue_ms is None or profile.launch_share is None:
        return f"{call}; what enqueueing takes was not measured"
    bound = (
        ": the GPU waits for the host, and a faster kernel changes little"
        if profile.launch_share >= _LAUNCH_BOUND
        else ""
    )
    return (
        f"{call}; enqueueing it takes the host {profile.enqueue_ms:.4g} ms, "
        f"{100 * profile.launch_share:.0f} % of that{bound}"
    )


def _sums(profile: ProfileFile) -> list[str]:
    times: defaultdict[Role, list[float]] = defaultdict(list)
    for kernel in profile.kernels:
        times[kernel.role].append(kernel.ms or 0.0)
    return [
        f"{sum(times[role]):>9.4f} {100 * sum(times[role]) / profile.profiled_ms:>4.1f} %  {words} "
        f"({counted(len(times[role]), 'kernel')})"
        for role, words in ROLES.items()
        if times[role]
    ]


def _wrong(profile: ProfileFile) -> list[str]:
    wrong = [
        f"{shown(path)}: planned {unit.planned}, found {unit.found}"
        for path, unit in profile.units.items()
        if not unit.agrees
    ]
    return [f"not as planned (!): {'; '.join(wrong)}"] if wrong else []


def cut(text: str, longest: int) -> str:
    """Leave out the middle of a long name: both ends tell kernels apart."""
    text, half = shown(text), longest // 2
    return text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"
