"""The picture of a profile: a bar for each kernel, in the order in which they run; a file of its own, without
script.
"""

from __future__ import annotations

from deploy.files.profile import ProfiledKernel, ProfileFile
from deploy.report.profile_lines import ROLES, formats_of, launch_sentence, share_of, time_of
from deploy.report.wording import html

_MOST_BARS = 120
_LABEL_LETTERS = 40
_ROW, _TOP, _LEFT, _BARS, _RIGHT = 17.0, 74.0, 270.0, 420.0, 400.0
_CSS = """
text{font:11px system-ui,"Segoe UI","Liberation Sans",sans-serif;fill:#646d73}.title{fill:#1d2327;font-size:13px}
.paper{fill:#fdfdfc}.layer{fill:#1f6f8b}.quantize{fill:#c98a1b}.reformat,.copy{fill:#b1510f}.copy{fill-opacity:.6}.other{fill:#b9c6cb}
@media (prefers-color-scheme:dark){text{fill:#939da3}.title{fill:#dfe4e6}.paper{fill:#14181a}.layer{fill:#63b3ce}.quantize{fill:#e3b04b}
.reformat,.copy{fill:#e89a5b}.other{fill:#46545b}}
"""


def profile_svg(profile: ProfileFile) -> str:
    """Draw the kernels that take longest, at most 120, in the order in which they run."""
    longest = sorted(profile.kernels, key=lambda kernel: -(kernel.ms or 0.0))[:_MOST_BARS]
    rows = [kernel for kernel in profile.kernels if kernel in longest][:_MOST_BARS]
    most = max(kernel.ms or 0.0 for kernel in rows)
    width, height = _LEFT + _BARS + _RIGHT, _TOP + _ROW * len(rows) + 16
    left_out = len(profile.kernels) - len(rows)
    title = f"Time by kernel on {profile.machine}" + (f"; {left_out} shorter ones are left out" if left_out else "")
    parts = [f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>', _text(16, 22, title, "title")]
    parts += [_text(16, 40, launch_sentence(profile)), *_legend()]
    for index, kernel in enumerate(rows):
        parts += _bar(profile, kernel, _TOP + _ROW * index, most)
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{html(title)}"><style>{_CSS}</style>{"".join(parts)}</svg>\n'


def _bar(profile: ProfileFile, kernel: ProfiledKernel, y: float, most: float) -> list[str]:
    planned, found = formats_of(profile, kernel)
    formats = f"{planned}: {found}" if planned else found
    length = _BARS * (kernel.ms or 0.0) / most if most else 0.0
    hint = f"{kernel.kind} {kernel.name}: {time_of(kernel)} ms, {ROLES[kernel.role]}"
    return [
        _text(
            _LEFT - 8,
            y + 12,
            _short(", ".join(kernel.units) if kernel.role == "layer" else kernel.name or kernel.kind),
            "",
            "end",
        ),
        f'<rect class="{kernel.role}" x="{_LEFT:.1f}" y="{y + 2:.1f}" width="{max(length, 0.5):.1f}" height="{_ROW - 4:.1f}">',
        f"<title>{html(hint)}</title></rect>",
        _text(_LEFT + length + 6, y + 12, f"{time_of(kernel)} ms, {share_of(profile, kernel)}  {formats}"),
    ]


def _legend() -> list[str]:
    parts, x = [], 16.0
    for role, words in ROLES.items():
        parts += [f'<rect class="{role}" x="{x:.1f}" y="51" width="10" height="10"/>', _text(x + 15, 60, words)]
        x += 15 + 6.3 * len(words) + 14
    return parts


def _short(text: str) -> str:
    half = _LABEL_LETTERS // 2
    return text if len(text) <= _LABEL_LETTERS else f"{text[: half - 1]}…{text[-half:]}"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html(text)}</text>'
