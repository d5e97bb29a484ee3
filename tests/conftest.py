"""Lets `pytest tests/` import the code from the folder above, wherever pytest is started."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
