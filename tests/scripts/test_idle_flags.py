"""Flags that count for nothing beside others, or without them."""
import pytest

import chat
import distill
import evaluate
import rl
import sample
import train
from flags import parse

IDLE = [  # a command line, the flag of it that counts for nothing, and with or without which other
    (sample, "--oracle mdlm --out_dir out/x", "out_dir", "with --oracle"),
    (sample, "--oracle mdlm --init_from out/x", "init_from", "with --oracle"),
    (sample, "--oracle mdlm --dtype auto", "dtype", "with --oracle"),
    (evaluate, "--out_dir out/x --oracle mdlm", "out_dir", "with --oracle"),
    (evaluate, "--init_from s-sahoo/duo --out_dir x", "out_dir", "with --init_from"),
    (chat, "--oracle mdlm --out_dir out/x", "out_dir", "with --oracle"),
    (sample, "--chat --num_samples 5", "num_samples", "with --chat"),
    (sample, "--chat --batch_size 5", "batch_size", "with --chat"),
    (sample, "--chat --png a.png", "png", "with --chat"),
    (sample, "--html a.html --batch_size 5", "batch_size", "with --html"),
    (sample, "--json --watch", "watch", "with --json"),
    (chat, "--json --watch", "watch", "with --json"),
    (sample, "--gap ?", "gap", "without --prompt"),
    (sample, "--beside out/b", "beside", "without --html"),
    (sample, "--label sea --candidates 5", "candidates", "without --classifier"),
    (sample, "--classifier_order exact", "classifier_order", "without --classifier"),
    (evaluate, "--ends", "ends", "without --lambada or --choices"),
    (train, "--minutes 3 --max_iters 5", "minutes", "with --max_iters"),
    (distill, "--teacher x --minutes 3 --iters_per_round 5", "minutes", "with --iters_per_round"),
    (rl, "--start x --minutes 3 --max_iters 5", "minutes", "with --max_iters"),
]


@pytest.mark.parametrize("script, line, name, other", IDLE)
def test_a_flag_that_the_others_make_idle_is_refused_before_anything_runs(
    script, line, name, other, capsys
):
    with pytest.raises(SystemExit) as end:
        parse(script.Config, line.split())
    assert end.value.code == 2
    assert f"--{name} counts for nothing {other}: leave out --{name}" in capsys.readouterr().err


def test_a_flag_that_is_idle_may_be_switched_off_or_given_its_default():
    for line in ("--json --no_watch", "--oracle mdlm --dtype float32", "--gap _"):
        assert parse(sample.Config, line.split())
