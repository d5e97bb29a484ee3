"""
Drawing figures with matplotlib, which is optional.
"""
from pathlib import Path

from flags import UserError

COLORS = "tab:gray", "tab:red", "tab:blue", "tab:green"


def load_pyplot():
    """matplotlib.pyplot without a display; UserError if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("the figure needs matplotlib: pip install matplotlib, "
                        "and run again") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def save_figure(figure, path, **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **options)
    print(f"figure saved in {path}, {Path(path).stat().st_size / 1000:.0f} kB")
