"""The picture of a profile: a bar for each kernel, in the order in which they run; a file of its own, without
script.
"""

from __future__ import annotations

from markupsafe import Markup

from deploy.files.profile import ProfiledKernel, ProfileFile
from deploy.report.profile_lines import ROLES, cut, formats_of, launch_sentence, share_of, time_of
from deploy.report.svg import LETTER, element, hinted, label, picture

_MOST_BARS = 120
_LABEL_LETTERS = 40
_ROW, _TOP, _LEFT, _BARS, _RIGHT = 17.0, 74.0, 270.0, 420.0, 400.0
_CSS = Markup("""
text{font:11px system-ui,"Segoe UI","Liberation Sans",sans-serif;fill:#646d73}.title{fill:#1d2327;font-size:13px}
.paper{fill:#fdfdfc}.layer{fill:#1f6f8b}.quantize{fill:#c98a1b}.reformat,.copy{fill:#b1510f}.copy{fill-opacity:.6}\
.other{fill:#b9c6cb}
@media (prefers-color-scheme:dark){text{fill:#939da3}.title{fill:#dfe4e6}.paper{fill:#14181a}.layer{fill:#63b3ce}\
.quantize{fill:#e3b04b}
.reformat,.copy{fill:#e89a5b}.other{fill:#46545b}}
""")


def profile_svg(profile: ProfileFile) -> str:
    """Draw the kernels that take longest, at most 120, in the order in which they run."""
    longest = sorted(profile.kernels, key=lambda kernel: -(kernel.ms or 0.0))[:_MOST_BARS]
    rows = [kernel for kernel in profile.kernels if kernel in longest][:_MOST_BARS]
    most = max(kernel.ms or 0.0 for kernel in rows)
    width, height = _LEFT + _BARS + _RIGHT, _TOP + _ROW * len(rows) + 16
    left_out = len(profile.kernels) - len(rows)
    title = f"Time by kernel on {profile.machine}" + (f"; {left_out} shorter ones are left out" if left_out else "")
    parts = [element("style", _CSS), element("rect", class_="paper", width=width, height=height)]
    parts += [label(16, 22, title, "title"), label(16, 40, launch_sentence(profile)), *_legend()]
    for index, kernel in enumerate(rows):
        parts += _bar(profile, kernel, _TOP + _ROW * index, most)
    return f"{picture(width, height, title, parts, xmlns='http://www.w3.org/2000/svg')}\n"


def _bar(profile: ProfileFile, kernel: ProfiledKernel, y: float, most: float) -> list[Markup]:
    planned, found = formats_of(profile, kernel)
    formats = f"{planned}: {found}" if planned else found
    length = _BARS * (kernel.ms or 0.0) / most if most else 0.0
    hint = f"{kernel.kind} {kernel.name}: {time_of(kernel)} ms, {ROLES[kernel.role]}"
    name = cut(", ".join(kernel.units) if kernel.role == "layer" else kernel.name or kernel.kind, _LABEL_LETTERS)
    return [
        label(_LEFT - 8, y + 12, name, anchor="end"),
        hinted("rect", hint, class_=kernel.role, x=_LEFT, y=y + 2, width=max(length, 0.5), height=_ROW - 4),
        label(_LEFT + length + 6, y + 12, f"{time_of(kernel)} ms, {share_of(profile, kernel)}  {formats}"),
    ]


def _legend() -> list[Markup]:
    parts, x = [], 16.0
    for role, words in ROLES.items():
        parts += [element("rect", class_=role, x=x, y=51, width=10, height=10), label(x + 15, 60, words)]
        x += 15 + LETTER * len(words) + 14
    return parts
