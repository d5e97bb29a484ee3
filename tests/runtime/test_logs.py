"""The other logs of training, and a run that fails in the middle: what is missing is one line."""
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import train
from checkpoints.file import Folder
from flags import UserError
from runs import cache, complaint, disk_of, elsewhere, fit, metrics, tiny  # noqa: F401
from runtime.trainer import Trainer

# ---- TensorBoard

@pytest.fixture
def board(monkeypatch):
    """A SummaryWriter that remembers. -> [(folder, purge_step, {(name, step): value})]"""
    fake, writers = ModuleType("torch.utils.tensorboard"), []

    class SummaryWriter:
        def __init__(self, path, purge_step):
            self.values = {}
            writers.append((str(path), purge_step, self.values))

        def add_scalar(self, name, value, step):
            self.values[name, step] = value

        def flush(self):
            pass
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    return writers


def test_tensorboard_gets_all_metrics_and_a_resumed_run_hides_what_it_repeats(board):
    fit("out", tensorboard=True, max_iters=4, eval_interval=2, log_interval=1)
    fit("out", init_from="resume", max_iters=6)
    (path, purge, first), (_, again, second) = board
    assert path == "out/tensorboard" and (purge, again) == (0, 5)
    both = {**first, **second}
    for name in ("loss", "val_bound", "val_se", "seconds"):
        written = {step: value for (what, step), value in both.items() if what == name}
        assert written == metrics("out", name)
    assert max(step for _, step in first) == 4 and min(step for _, step in second) == 4


def test_without_the_flag_nothing_is_written_for_tensorboard(board):
    fit("out")
    files = sorted(path.name for path in Path("out").iterdir())
    assert board == [] and files == [".lock", "ckpt.pt", "metrics.jsonl"]


def test_a_missing_tensorboard_is_one_line_before_the_first_step(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    error = complaint(train, *tiny(out_dir="out"), "--tensorboard", capsys=capsys)
    assert "pip install tensorboard" in error and not list(Path().rglob("metrics.jsonl"))


# ---- a run that fails in the middle

@pytest.mark.parametrize("at, safe", [
    (3, "step 2 is saved in out, go on with --init_from resume --out_dir out"),
    (1, "nothing was saved yet")])
def test_a_loader_that_fails_midway_is_named_with_what_is_safe(at, safe, monkeypatch, capsys):
    step_optimizers = Trainer.step_optimizers

    def fail(self, step):
        if step == at:
            raise OSError(5, "Input/output error", "shard-7.bin")
        return step_optimizers(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step_optimizers", fail)
        error = complaint(train, *tiny(out_dir="out", max_iters=6, eval_interval=2), capsys=capsys)
    assert error.endswith(f"Input/output error: shard-7.bin; {safe}\n")


def test_a_disk_that_fills_up_leaves_whole_lines_and_the_error_says_what_is_safe():
    fit("out", max_iters=20, eval_interval=20, log_interval=1)
    folder = Folder("out", ours=True)
    size = Path("out/metrics.jsonl").stat().st_size
    says = "cannot write to out/metrics.jsonl .File too large.* --init_from resume"
    with disk_of(size + 500), pytest.raises(UserError, match=says):
        for step in range(21, 41):
            folder.log(step=step, loss=1.0, seconds=1.0)
    folder.lock.release()
    lines = Path("out/metrics.jsonl").read_text().splitlines()  # 42 bytes each, of 500
    assert [json.loads(line)["step"] for line in lines[-11:]] == list(range(21, 32))


def test_a_line_of_metrics_says_what_the_run_is():
    fit("out", method="udlm")
    first = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[0])
    assert first == dict(step=0, method="udlm", data="toy", block_size=8, labels=False,
                         bytes_per_token=pytest.approx(4.6, abs=0.3))
