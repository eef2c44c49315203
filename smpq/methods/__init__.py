"""Methods that say which layer gets which format, or train it: one file each, chosen by name.

`smpq.methods.base.method` tells how to add one.
"""

from __future__ import annotations

# in the order in which smpq methods lists them
from smpq.methods import (  # isort: skip
    shapley, supernet, hawq, clado, clado_near, hybrid, coopq, fima_q, ohq, slim_llm, cmpq, mg_ptq,
)  # fmt: skip
from smpq.methods import bsq, cpq, kaq, sdq  # isort: skip
from smpq.methods import largest_first, random_importance, uniform  # isort: skip
from smpq.methods.base import METHODS, Method, Need, method, method_from_name
from smpq.methods.problem import Limits, Objective, SearchProblem, Solution, linear_objective

DEFAULT_METHOD = "shapley"

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Limits",
    "Method",
    "Need",
    "Objective",
    "SearchProblem",
    "Solution",
    "bsq",
    "clado",
    "clado_near",
    "cmpq",
    "coopq",
    "cpq",
    "fima_q",
    "hawq",
    "hybrid",
    "kaq",
    "largest_first",
    "linear_objective",
    "method",
    "method_from_name",
    "mg_ptq",
    "ohq",
    "random_importance",
    "sdq",
    "shapley",
    "slim_llm",
    "supernet",
    "uniform",
]  # fmt: skip
