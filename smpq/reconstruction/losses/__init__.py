"""What the error of a block costs, one file a loss; importing this loads no torch."""

from smpq.reconstruction.losses import brecq, fima_q, mse

__all__ = ["brecq", "fima_q", "mse"]
