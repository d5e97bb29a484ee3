"""Energies beside public code's figures, in the scripts, on the toy language; and refusals."""
import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from models import random_checkpoint

import evaluate
import sample
import world
from checkpoints.load import load_model
from data import load_data
from diffusion import ancestral
from evaluations import results, run
from flags import UserError, configure, parse
from methods import make_method
from methods.energy import contrast
from oracle import exact
from references import Figures
from runs import cache, elsewhere  # noqa: F401
from samplers import make_sampler
from samplers.generate import CallCounter, generate
from world import L, N

FIGURES = Figures("energy_reference")
X0, ZT, TIME, OTHER = (FIGURES(f"edlm_pub/{name}") for name in ("x0", "xt", "t", "neg"))  # (4, 8)
WORDS = 11  # and the mask


# ---- figures of public code

def energies(carry, logits=None, x=X0):
    """E(z, x) (4,) of the public figures, as the sampler weighs: -log w, from an AR model that is a
    table, and whose first token counts for nothing there."""
    log_x = FIGURES("edlm_pub/log_p_x0") if logits is None else logits  # (4, 8, 12)
    table = FIGURES("edlm_pub/ar_table").double()[..., :WORDS]  # place, word before, word

    def ar(z, t, at):
        rows = table[torch.arange(7), z[:, 1:]]  # (4, 7, 11)
        return F.pad(rows, (0, 0, 1, 0))[at]  # (N, 11) the first row is flat
    made = make_sampler("energy", make_method("mdlm", WORDS), carry=carry, energy="its folder")
    made.judge = SimpleNamespace(method=make_method("ar", WORDS), denoiser=ar)
    at = ZT == WORDS  # (4, 8)
    own = torch.where(at, log_x.gather(-1, x[..., None])[..., 0].double(), 0.0).sum(-1)  # (4,)
    first = torch.ones_like(at[:, 0]) if not carry else at[:, 0]  # (4,) it was scored here
    log_p = made.rate(ZT, TIME[:, None], at, None)(x)  # (4,)
    return own - log_p - first * torch.tensor(WORDS).double().log()


@pytest.mark.parametrize("carry", [False, True])
def test_energies_are_those_of_public_code_if_that_gets_log_probabilities(carry):
    ours, key = energies(carry), f"edlm_pub/PUB_energy_carry{int(carry)}"
    torch.testing.assert_close(ours.float(), FIGURES(key)[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, FIGURES(f"edlm_pub/OURS_energy_carry{int(carry)}"), atol=1e-5,
                               rtol=1e-5)
    as_called = energies(carry, FIGURES("edlm_pub/log_p_x0").exp())  # (4,) as its sampler does,
    as_called = as_called + (ZT < WORDS).sum(-1)  # (4,) where visible tokens have "log" 1
    torch.testing.assert_close(as_called.float(), FIGURES(f"{key}_given_probs")[:, 0], atol=1e-4,
                               rtol=1e-5)
    assert (as_called - ours).min() > 5


def test_the_loss_of_a_trained_energy_is_that_of_public_code():
    pair = energies(True), energies(True, x=OTHER)  # (4,) each
    torch.testing.assert_close(contrast(*pair).float(), FIGURES("edlm_pub/PUB_train_nce")[:, 0],
                               atol=1e-5, rtol=1e-5)


def test_what_public_code_reports_as_a_likelihood_holds_no_diffusion_model():
    """(1/t) sum_M -log p_AR(x_l | x_<l), whatever x_theta is: fault 4."""
    log_x = FIGURES("edlm_pub/log_p_x0")
    for other in (log_x, log_x.roll(1, 0)):
        at = (ZT == WORDS)
        own = torch.where(at, other.gather(-1, X0[..., None])[..., 0].double(), 0.0).sum(-1)
        reported = (energies(True, other) - own) / TIME.double()  # (4,)
        torch.testing.assert_close(reported, FIGURES("edlm_pub/OURS_val_sum"), atol=1e-5, rtol=1e-6)
        public = FIGURES("edlm_pub/PUB_val_loss_per_token").sum(-1).double()  # (4,)
        torch.testing.assert_close(reported, public, atol=1e-5, rtol=1e-6)


# ---- the toy language

LENGTH = 12


@functools.cache
def oracles():
    return exact("mdlm"), exact("ar")


def written(K, steps=3, n=120, **flags):
    """Exact -log p of texts in few steps, nats. -> (n,)"""
    model, judge = oracles()
    made = make_sampler("energy", model.method, energy_texts=K, energy="ar", **flags)
    made.judge = judge
    torch.manual_seed(1)
    x = generate(model.method, model.denoiser, n, LENGTH, steps, made)  # (n, LENGTH)
    return -load_data("toy", LENGTH).language.log_prob(x)


def test_an_exact_judge_makes_texts_likelier_the_more_draws_it_has():
    """Of the toy language, in three steps: 16 than 1 by more than four standard errors."""
    nats = [written(K) for K in (1, 4, 16)]  # (n,) each
    assert nats[0].mean() > nats[1].mean() > nats[2].mean()
    for other in (nats[2], written(16, energy_rule="metropolis")):
        error = ((nats[0].var() + other.var()) / len(other)) ** 0.5
        assert nats[0].mean() - other.mean() > 4 * error


# ---- costs, and what is known of the texts

def sampler_on(judge, **flags):
    made = make_sampler("energy", make_method("mdlm", N), energy="its folder", **flags)
    made.judge = judge
    return made


def test_calls_of_the_judge_are_counted_and_none_is_made_where_no_mask_opens():
    ar = SimpleNamespace(method=make_method("ar", N), denoiser=CallCounter(world.next_token(
        world.P)))
    made, z = sampler_on(ar, energy_texts=3), torch.full((2, L), N)  # (2, L)
    draft = CallCounter(make_method("mdlm", N).oracle(world.LANGUAGE))
    torch.manual_seed(0)
    for _ in range(2):
        list(made(make_method("mdlm", N).process, draft, z, z != N, 40))
    assert ar.denoiser.calls == 3 * draft.calls <= 3 * 12
    total, last = made.costs(whole=True), made.costs()
    assert total["judge_calls"] == ar.denoiser.calls and total["judge_texts"] == ar.denoiser.texts
    assert 0 < last["judge_calls"] < total["judge_calls"]


def test_one_draw_and_no_window_are_the_plain_sampler_in_law():
    made = make_sampler("energy", make_method("mdlm", N), energy_window=0.0)
    process, z = make_method("mdlm", N).process, torch.full((50, L), N)  # (50, L)
    ends = []
    for each in (made, ancestral):
        torch.manual_seed(0)
        *_, end = each(process, make_method("mdlm", N).oracle(world.LANGUAGE), z, z != N, 3)
        ends.append(end)
    assert torch.equal(*ends)


@pytest.mark.parametrize("flags, config, known", [
    ({}, {}, True), (dict(energy_rule="metropolis"), dict(temperature=0.7), True),
    (dict(carry=True), {}, False), (dict(energy_window=0.5), {}, False),
    ({}, dict(top_p=0.9), False), ({}, dict(temperature=0.0), False)])
def test_the_likelihood_of_texts_is_that_of_the_ar_model_where_that_is_so(flags, config, known):
    judge = SimpleNamespace(method=make_method("ar", N))
    config = SimpleNamespace(**{"temperature": 1.0, "top_p": 1.0, **config})
    model, sentence = sampler_on(judge, **flags).follows(config)
    assert (model is judge) == known and ("is not known" in sentence) == (not known)
    assert sampler_on(judge, energy_texts=1).follows(config) is None
    trained = SimpleNamespace(method=make_method("energy", N))
    if not flags:
        assert sampler_on(trained).follows(config)[0] is None


def test_evaluate_tells_the_likelihood_of_the_energy_from_that_of_the_network(capsys):
    """The exact one with the whole energy, and none with --carry: it would be the AR model's."""
    few = ["--oracle", "mdlm", "--sampler", "energy", "--max_texts", 30,
           "--num_samples", 0, "--draws", 1]
    law = results(capsys, *few)["law"]
    x = load_data("toy", 32).example_windows("val", 30)[0]
    nats = -load_data("toy", 32).language.log_prob(x) / 32  # (30,)
    assert abs(law["nats_per_token"] - float(nats.mean())) < 1e-9
    assert results(capsys, *few, "--carry")["law"].keys() == {"says"}
    assert "law" not in results(capsys, "--oracle", "mdlm", *few[4:])
    run(*few)
    said = capsys.readouterr().out
    assert "the closer its texts come to the law of ar" in said and "those of mdlm alone" in said


def test_a_trained_run_writes_by_the_energy_of_another(capsys):
    for method in ("mdlm", "ar", "energy"):
        random_checkpoint(method, method=method)
    for judge, more in (("ar", []), ("ar", ["--carry", "--energy_rule", "metropolis"]),
                        ("energy", ["--temperature", "0.5"])):
        config, given = parse(sample.Config, ["--out_dir", "mdlm", "--sampler", "energy",
                                              "--energy", f"./{judge}", "--steps", "3", "--json",
                                              "--num_samples", "2", "--device", "cpu", *more])
        sample.main(config, given)
        assert '"judge_calls": ' in capsys.readouterr().out
    evaluate.main(configure(evaluate.Config, out_dir="mdlm", sampler="energy", energy="./energy",
                            steps=2, num_samples=2, max_texts=4, draws=1, device="cpu"))
    assert "has energies, no sums" in capsys.readouterr().out
    assert load_model("energy").method.classifies


# ---- refusals

def beside(name, block_size=8):
    """What prepare sees: a model of 8 tokens, and beside it the one that rates."""
    other = SimpleNamespace(method=make_method(name, 5),
                            config=SimpleNamespace(block_size=block_size))
    return SimpleNamespace(beside=lambda flag, name: other, config=SimpleNamespace(block_size=8))


@pytest.mark.parametrize("flags, judge, says", [
    (dict(energy="x"), beside("udlm"), "run of udlm, which has a bound and no probabilities: give"),
    (dict(energy="x"), beside("classifier"), "run of classifier, which has a bound"),
    (dict(energy="x", carry=True), beside("energy"), "next-token probabilities, which x has not"),
    (dict(energy="x"), beside("ar", 4), "knows texts of 4 tokens, and the model writes 8: train")])
def test_what_cannot_rate_is_refused_in_one_line(flags, judge, says):
    with pytest.raises(UserError, match=says) as refused:
        make_sampler("energy", make_method("mdlm", 5), **flags).prepare(judge)
    assert "\n" not in str(refused.value)


def test_methods_that_do_not_read_whole_texts_are_refused():
    with pytest.raises(UserError, match="rates whole texts, and bd3lm does not read them at once"):
        make_sampler("energy", make_method("bd3lm", 5))
