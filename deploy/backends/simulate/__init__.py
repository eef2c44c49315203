"""`simulate`: every width, computed in float on rounded values by ONNX Runtime."""

from deploy.backends.simulate.backend import Simulate

__all__ = ["Simulate"]
