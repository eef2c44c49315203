"""Why a mutation may be accepted although smpq then does something else: by file and field."""

from __future__ import annotations

import re

from tests.run_files.mutations import Mutation

ASKED = (
    "it says what the run was asked for, and commands do what it says; whose task may be loaded is kept outside of "
    "the run"
)
INFORMATION = "it tells where the numbers came from, and is shown; nothing is decided by it"
TEXT = "a text that is shown as it is, on one line, with signs that act on a terminal made visible"
FIGURE = "the run's own figure: any number within its limits that fits the figures beside it may have been measured"
PREDICTED = "what was predicted before a measurement: any number inside its interval may have been"
ENTRIES = "a run with fewer or with more such entries is a run as good"
ABOUT_ANOTHER = (
    "the file is then about another policy, model or machine, and counts as absent: "
    "the page says that it has to be made"
)
BY_HAND = "a person may write this file"
ANEW = "every command that opens the run writes the file anew from the model; smpq report alone shows what stands there"
ORDER = "the order is that of the rows of a table, or says which machine measured last"
SUPERNET = "no command reads the file back: training goes on from supernet.safetensors"
PROFILE = "no command reads the file back: smpq profile writes it anew from what was measured"
PAGE = (
    "every command that makes the page writes the file anew first, from files whose figures are checked against "
    "each other"
)
LOADING = "an engine may be loaded in other ways that no engine of ours needs: it computes the same but for rounding"

_RULES: tuple[tuple[str, str, str], ...] = (
    ("run.json", r"settings|settings\..*", ASKED),
    ("run.json", r"(versions|resources|address).*", INFORMATION),
    ("synthetic.json", r".+", INFORMATION),
    ("calibration.json", r"digest|threads|versions.*", INFORMATION),
    ("space.json", r"(groups|joins|skipped|refused|reference|sizes).*", ANEW),
    ("costs.json", r"costs.*", ANEW),
    ("scores.json", r"value|estimator|stop_reason|seed|evaluations|permutations|efficiency_gap", INFORMATION),
    ("scores.json", r"notes.*", TEXT),
    ("scores.json", r"(pairs|near).*", FIGURE),
    ("scores.json", r"scores(\.\*)?", ORDER),
    ("scores.json", r"scores\.\*\.\*(\..*)?", FIGURE),
    ("policy.json", r"policy.*|float_joins.*", BY_HAND),
    ("budget.json", r"budget", BY_HAND),
    ("loss.json", r"policy|budget", ABOUT_ANOTHER),
    ("loss.json", r"data|samples", INFORMATION),
    ("loss.json", r"mean|interval.*", FIGURE),
    ("stability.json", r"policy", ABOUT_ANOTHER),
    ("stability.json", r"resamples|allocation.*|frequencies.*|undecided.*", FIGURE),
    ("contributions.json", r"policy", ABOUT_ANOTHER),
    ("contributions.json", r"value|estimator|stop_reason|seed|evaluations", INFORMATION),
    ("contributions.json", r"total|(contributions|apart).*", FIGURE),
    ("observations.json", r"fingerprint", ABOUT_ANOTHER),
    ("observations.json", r"machines", ORDER),
    ("observations.json", r"machines\.\*(\.(observations|refusals))?(\[\])?", ENTRIES),
    ("observations.json", r"machines\.\*\.(float_ms|observations\[\]\.(ratio|standard_error|float_ms))", FIGURE),
    ("observations.json", r"machines\.\*\.(observations|refusals)\[\]\.policy.*", FIGURE),
    ("observations.json", r"machines\.\*\.refusals\[\]\.blamed.*", ENTRIES),
    ("observations.json", r"machines\.\*\.refusals\[\]\.reason", TEXT),
    ("loop.json", r"searches(\[\])?(\.(steps|known|known\.(observations|refusals)))?(\[\])?", ENTRIES),
    ("loop.json", r"searches\[\]\.(budget|machine)", ABOUT_ANOTHER),
    ("loop.json", r"searches\[\]\.outcome.*", ENTRIES),
    ("loop.json", r"searches\[\]\.steps\[\]\.predicted.*", PREDICTED),
    ("loop.json", r"searches\[\]\.steps\[\]\.(measured.*|standard_error|float_ms|policy.*)", FIGURE),
    ("loop.json", r"searches\[\]\.(steps|known\.refusals)\[\]\.(label|reason|refused)", TEXT),
    ("loop.json", r"searches\[\]\.(steps|known\.refusals)\[\]\.blamed.*", ENTRIES),
    ("loop.json", r"searches\[\]\.known\.(float_ms|(observations|refusals)\[\]\.policy.*)", FIGURE),
    ("bundle.json", r"budget", BY_HAND),
    ("bundle.json", r"candidates|candidates\.\*", ENTRIES),
    ("bundle.json", r"candidates\.\*\.predicted.*", PREDICTED),
    ("bundle.json", r"candidates\.\*\.label", TEXT),
    ("bundle.json", r"candidates\.\*\.policy.*", FIGURE),
    ("curve.json", r"machine|samples|metric|stop_reason|not_timed", INFORMATION),
    ("curve.json", r"points(\[\])?", ENTRIES),
    ("curve.json", r"points\[\]\..*|float_cost", FIGURE),
    ("build.json", r"kernels.*", FIGURE),
    ("latency.json", r"policy", ABOUT_ANOTHER),
    ("latency.json", r"machine|rounds|turn|measurement\.(clock|p99_note|batch)", INFORMATION),
    ("latency.json", r"measurement\..*", FIGURE),
    ("latency.json", r"predicted.*", PREDICTED),
    ("verify.json", r"policy", ABOUT_ANOTHER),
    ("verify.json", r"metric|samples|explanation", INFORMATION),
    ("verify.json", r"(stages|whole|confidence).*", FIGURE),
    ("supernet.json", r".+", SUPERNET),
    ("report.json", r".+", PAGE),
    ("profile.json", r".+", PROFILE),
    (
        "engine.json",
        r"engines\.\*\.(graph_optimization_level|disabled_optimizers.*|session_config.*|in.*_op_num_threads)",
        LOADING,
    ),
)


def reason(mutation: Mutation) -> str | None:
    """Return the reason, None where there is none."""
    for file, field, why in _RULES:
        if mutation.file == file and re.fullmatch(field, mutation.field):
            return why
    return None
