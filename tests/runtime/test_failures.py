"""A run that cannot go on says why in one line, and its last good checkpoint is whole."""
import errno
import os
import re
from pathlib import Path

import pytest
import torch

import train
from checkpoints.load import read_state
from flags import UserError
from methods.mdlm import MDLM
from runs import (  # noqa: F401
    assert_same, cache, complaint, disk_of, elsewhere, fit, metrics, tiny,
)


def test_an_infinite_loss_stops_the_run_and_leaves_the_last_good_checkpoint(monkeypatch):
    def explode(trainer, n):
        scale = torch.tensor([torch.inf, 1.0]) if n == 5 else 1.0
        return train.train_step(trainer, n) * scale

    monkeypatch.setattr(train.train, "__defaults__", (explode,))
    with pytest.raises(
        UserError, match=r"not finite at step 6 \(seed 7\): the checkpoint of step 4 is whole; try"
    ):
        fit("out", max_iters=9, eval_interval=4, log_interval=100, seed=7)
    assert read_state("out")["step"] == 4


def test_a_gradient_that_is_not_finite_stops_it_too_before_it_is_saved(monkeypatch):
    """The loss of the step that ruins the weights may still be a number."""

    def square_root_at_zero(self, denoiser, x, frozen=None):
        loss = denoiser(x, None)
        return loss + (loss * 0).sqrt()  # 0, but its slope is infinite

    monkeypatch.setattr(MDLM, "loss", square_root_at_zero)
    with pytest.raises(UserError, match="not finite at step 1 .*: nothing was saved yet"):
        fit("out", eval_interval=1)
    assert not Path("out/ckpt.pt").exists()


def test_a_learning_rate_out_of_all_bounds_is_one_line_and_exit_code_2(capsys):
    error = complaint(train, *tiny(learning_rate=1e30, max_iters=20, out_dir="out"), capsys=capsys)
    assert re.search(r"not finite at step \d+ \(seed 1337\)", error)


@pytest.mark.parametrize("size", [0, 100, 5_000, 50_000])
def test_a_disk_that_takes_only_part_of_a_checkpoint_is_one_line_and_costs_nothing(size, capsys):
    whole = fit("out", eval_interval=2)
    with disk_of(size):
        error = complaint(
            train, "--out_dir", "out", "--init_from", "resume", "--max_iters", 3, capsys=capsys
        )
    assert "out/" in error or "File too large" in error
    assert_same(whole, read_state("out"))
    assert not list(Path("out").glob("*.tmp"))
    fit("out", init_from="resume", max_iters=3)
    assert list(metrics("out")) == [1, 2, 3]


def test_no_space_left_is_told_with_what_to_do(monkeypatch, capsys):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    error = complaint(train, *tiny(out_dir="out"), capsys=capsys)
    assert "cannot save to out/ckpt.pt (No space left on device): free some space" in error
    assert os.listdir("out") == [".lock"]
