"""
Drawing figures with matplotlib, which is optional.
"""
from pathlib import Path

from data.files import atomic_write
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
    kind = Path(path).suffix.removeprefix(".").lower()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format=kind if kind in figure.canvas.get_supported_filetypes() else
                       "png", **options)
    print(f"figure saved in {path}, {Path(path).stat().st_size / 1000:.0f} kB")
