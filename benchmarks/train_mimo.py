"""Train the MIMO detector of `examples/mimo.py` in float: about five minutes on one core.

Usage: train_mimo.py WEIGHTS [--setting task|task_qam16|task_16x16] [--steps N]

The training data are drawn from seeds. WEIGHTS is a safetensors file that the task takes as --weights.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from examples.mimo import SETTINGS, fit
from examples.mimo_detector import Detector

STEPS = 12_000


def trained(setting: str, steps: int = STEPS) -> Detector:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return fit(
        SETTINGS[setting], Detector(SETTINGS[setting].values), steps, say=lambda text: print(text, file=sys.stderr)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--setting", choices=list(SETTINGS), default="task")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    began = time.process_time()
    save_file(trained(arguments.setting, arguments.steps).state_dict(), arguments.weights)
    print(f"{time.process_time() - began:.0f} CPU seconds", file=sys.stderr)


if __name__ == "__main__":
    main()
