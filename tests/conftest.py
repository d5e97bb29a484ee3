"""Lets `pytest tests/` import the code from the folder above, wherever pytest is started."""
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)                                 # what is tiny gains nothing from a second one
sys.path.insert(0, str(Path(__file__).parent.parent))
