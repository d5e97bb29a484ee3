"""Lets `pytest tests/` import the code from the folder above, wherever pytest is started."""
import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")       # flash.py and draw.py: Triton reads it when it is imported
torch.set_num_threads(1)                                 # what is tiny gains nothing from a second one
sys.path.insert(0, str(Path(__file__).parent.parent))
