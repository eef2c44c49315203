"""Values go by the names of the trace."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from deploy.lowering.naming import name_values


def test_a_constant_that_is_called_as_a_tensor_of_the_trace_gets_another_name(tmp_path):
    """The exporter counts anew: its `view_3` may be a constant, while ours is its `view_5`."""
    added = np.array([1.0, 2.0], np.float32)
    shape = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    outputs = [helper.make_tensor_value_info("relu", TensorProto.FLOAT, [2])]
    nodes = [helper.make_node("Add", ["x", "view_3"], ["view_5"]), helper.make_node("Relu", ["view_5"], ["relu"])]
    graph = helper.make_graph(nodes, "graph", shape, outputs, [numpy_helper.from_array(added, "view_3")])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    name_values(model, SimpleNamespace(inputs=("x",)), {"view_3": "view_5"})
    path = tmp_path / "model.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    saved = onnx.load(path).graph
    assert [node.output[0] for node in saved.node] == ["view_3", "relu"]
    (constant,) = saved.initializer
    assert saved.node[0].input[1] == constant.name != "view_3"
    assert np.array_equal(numpy_helper.to_array(constant), added)
