"""torch's pass that casts the operands of operators on mixed types, without running every operator for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from torch import fx


def promotion_reads_the_graph() -> AbstractContextManager[Any]:
    """Let the pass take from the graph what an operator gives, for as long as the context is open.

    The pass runs each operator on fake tensors to know the types of what the next one reads: a twelfth of the time of
    an export. The graph says them already. Where an operand was cast, the pass has run the operator and noted what it
    gives, and its readers get the type they got before. Where torch has another pass, that one is left alone.
    """
    try:  # private to torch
        from torch.onnx._internal.fx.passes import type_promotion

        interpreter, rule_of = (
            type_promotion._TypePromotionInterpreter,  # noqa: SLF001
            type_promotion.get_type_promotion_rule,
        )
        promote, set_current = interpreter._maybe_promote_node, interpreter._set_current_node  # noqa: SLF001
    except (ImportError, AttributeError):
        return nullcontext()

    def run_node(self: Any, node: fx.Node) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return run(self, node)
        with set_current(self, node):
            rule = rule_of(node, self.type_promotion_table)
            if rule:
                promote(self, node, rule)
        return node.meta["val"]

    run = interpreter.run_node
    return mock.patch.object(interpreter, "run_node", run_node)
