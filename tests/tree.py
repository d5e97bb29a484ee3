"""The files of the project: those in its own folders, whatever else lies beside them (an
environment of any name, copies, runs)."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = [
    ["suggest"],
    ["flags"],
    ["script"],
    ["data", "kernels_triton"],
    ["kernels"],
    ["model"],
    ["diffusion", "gaussian"],
    ["methods", "samplers"],
    ["oracle"],
    ["checkpoints"],
    ["evaluation"],
    ["runtime", "viewer"],
    ["train", "sample", "evaluate", "distill", "rl", "chat", "micro"],
    ["experiments", "exercises"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def python_files(*rooms):
    """{name: path} of the Python files of these rooms: ROOT/room.py, or all below ROOT/room."""
    paths = [path for room in rooms for path in (ROOT / f"{room}.py", *(ROOT / room).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(paths) if path.is_file()}


CODE = python_files(*FLOOR)
TESTS = python_files("tests")
