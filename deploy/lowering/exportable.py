"""A traced program for torch's ONNX exporter, which decomposes it only where that changes something."""

from __future__ import annotations

import copy
import operator
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.fx.traceback import NodeSource

from calib.network.decomposed import without_retracing
from calib.network.nodes import OPERATOR
from calib.network.tracing import forget_layouts
from deploy.lowering.attention_heads import give_heads
from deploy.lowering.written_norms import write_out_norms


class Exportable(ExportedProgram):
    """A copy of a program that `run_decompositions` made, whose graph the exporter may change.

    The exporter begins with `run_decompositions` and the table of what ONNX has no function for. That traces the whole
    program again, half of the time of an export. Where the table holds none of its operators, the trace would return
    what it is given, so this copy is returned as it is. Where it does, they are taken apart node by node, as long as
    that is sure to give the same.
    """

    @classmethod
    def of(cls, program: ExportedProgram) -> Exportable:
        """Copy the graph and its signature; the weights are those of `program`."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in program.graph.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].name = node.name  # a graph gives no name that Python has, as `input`; the signature knows them
            copies[node].meta["from_node"] = [NodeSource(node)]  # what a trace leaves too: see TracedNames
        graph.eliminate_dead_code()  # as a trace does
        write_out_norms(graph)
        give_heads(graph)
        return cls(
            root=program.graph_module,
            graph=graph,
            graph_signature=copy.deepcopy(program.graph_signature),
            state_dict=program.state_dict,
            range_constraints=program.range_constraints,
            module_call_graph=program.module_call_graph,
            example_inputs=program.example_inputs,
            constants=program.constants,
            verifiers=program.verifiers,
        )

    def run_decompositions(self, decomp_table: dict[Any, Any] | None = None, **options: Any) -> ExportedProgram:
        """Return this program where `decomp_table` changes nothing in it, else one that has only what it keeps."""
        if decomp_table is not None and all(_stays(node, decomp_table) for node in self.graph.nodes):
            return self
        decomposed = without_retracing(self, decomp_table) if decomp_table is not None and not options else None
        if decomposed is None:
            decomposed = super().run_decompositions(decomp_table, **options)
        forget_layouts(decomposed)
        return decomposed


def _stays(node: fx.Node, table: dict[Any, Any]) -> bool:
    """Whether a node of a decomposed graph is a node of that kind again when it is decomposed with `table`."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OPERATOR):
        return False
    return node.target not in table and not node.target._schema.is_mutable  # noqa: SLF001 - no other way
