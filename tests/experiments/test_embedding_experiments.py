"""DiffuSeq's fast sampler: the steps of the public code, and that they write no text."""
import re

import torch

from experiments import embedding
from experiments.embedding import Published, T
from flags import configure
from methods import make_method
from samplers.ddim import DDIM


def test_as_published_a_step_goes_just_below_the_time_that_was_told():
    method = make_method("diffusion_lm", 9, dim=4, self_condition=0.0)
    torch.manual_seed(0)
    z, found = torch.randn(5, 4).double(), method.process.rows()[:5].detach().double()  # (N, D)
    found = type("Found", (), {"x_hat": found})
    t = torch.full((5,), 0.5).double()  # (N,)
    move = lambda sampler, s: sampler.move(method.process, z, found, t - s, t, None)  # (N, D)
    assert torch.equal(move(Published(), 0.2), move(DDIM(), 1 / T))
    assert torch.equal(move(Published(), 0.1 / T), move(DDIM(), 0.1 / T))


def test_the_published_steps_write_no_text_and_those_put_right_do(capsys):
    embedding.main(configure(embedding.Config, steps="8", num_samples=10, length=6))
    line = capsys.readouterr().out.splitlines()[-1]
    published, right = (float(x) for x in re.findall(r"(-?\d\.\d+) \+-", line))
    assert published > 4 and abs(right) < 1
