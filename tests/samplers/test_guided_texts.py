"""Guided texts of the world of 27 texts in two classes; FUDGE; what the flags ask for."""
from types import SimpleNamespace

import pytest
import torch

import world
from diffusion import Absorbing, Labeled, ancestral
from flags import UserError, configure, load_row
from methods import METHODS, make_method
from samplers import SamplingFlags, make_sampler, sampler_of
from samplers.guidance import (
    CFG,
    Fudge,
    PromptGuided,
    guide,
    guide_by_classifier,
    guide_by_label,
    guide_by_prompt,
)
from world import JOINT, L, N, distance, numbers, surprise

K = len(JOINT) - 1  # classes; as a label: no class
ONE = torch.tensor([1])  # the label of class 1
GIVEN = JOINT / JOINT.sum(-1, keepdim=True)  # (K + 1, 27) p(x | y)


def write(method, denoiser, n, steps, sampler=ancestral):
    """n texts from nothing. -> (n, L)"""
    z = method.prior((n, L))  # (n, L)
    *_, z = method.sample(denoiser, z, torch.zeros_like(z, dtype=torch.bool), steps, sampler)
    return z


# ---- texts

@pytest.mark.parametrize("name, sampler, steps, most", [
    ("mdlm", "first-hitting", 3, 0.0), ("mdlm", "ancestral", 48, 0.003),
    ("udlm", "ancestral", 48, 0.003), ("gidd", "ancestral", 48, 0.003)])
def test_many_steps_at_strength_one_draw_the_class(name, sampler, steps, most):
    """sum (q - p)^2 / p from p(x | y) within 4 standard errors, and `most`, which 48 steps cost; at
    strength 0 it is p(x), to the bit."""
    m, n = make_method(name, N), 5_000
    exact, plain = world.by_state(world.oracle(m.process)), make_sampler(sampler, m)
    torch.manual_seed(0)
    denoiser, guided = guide_by_label(m, exact, plain, ONE, K, 1.0)
    x = numbers(write(m, denoiser, n, steps, guided), N)  # (n,)
    far, error = distance(x, GIVEN[1])
    assert far < most + 4 * error and distance(x, GIVEN[0])[0] > 0.1
    ends = []
    for denoiser, guided in (guide_by_label(m, exact, plain, ONE, K, 0.0), (exact, plain)):
        torch.manual_seed(1)
        ends.append(write(m, denoiser, 500, 5, guided))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["mdlm", "udlm", "gidd"])
def test_many_steps_with_the_exact_classifier_draw_the_class(name):
    """The same without labels, against a model with labels, in as many steps; at 0 unguided."""
    m, n = make_method(name, N), 2_000
    exact, judge = world.by_state(world.oracle(m.process)), world.classifier(m.process)
    torch.manual_seed(0)
    denoiser, guided = guide_by_classifier(m, exact, ancestral, ONE, 1.0, judge, "exact", L)
    ours = write(m, denoiser, n, 16, guided)  # (n, L)
    theirs = write(m, Labeled(exact, ONE), n, 16)  # (n, L)
    a, b = (torch.bincount(numbers(x, N), minlength=27).double() for x in (ours, theirs))  # (27,)
    some = a + b > 10  # (27,)
    chi = ((a - b) ** 2 / (a + b))[some].sum()  # () two samples of one distribution
    assert (chi - some.sum()) / (2 * some.sum()) ** 0.5 < 4.5
    unguided = guide_by_classifier(m, exact, ancestral, ONE, 0.0, None, "exact", L)
    assert unguided == (exact, ancestral)


def test_more_than_one_asks_for_more_but_is_not_the_law_of_whole_texts():
    """At strength 3 p(y | x) of the samples rises, and they are far from (11.1) over whole texts,
    in however many steps: no token knows how the rest will weigh."""
    m, n = make_method("mdlm", N), 20_000
    torch.manual_seed(0)
    whole = GIVEN[1] ** 3 * GIVEN[K] ** -2  # (27,)
    whole, agreement = whole / whole.sum(), JOINT[1] / JOINT[K]  # (27,) each
    exact, means = world.oracle(m.process), []
    for gamma in (0.0, 1.0, 3.0):
        guided = guide_by_label(m, exact, make_sampler("first-hitting", m), ONE, K, gamma)
        x = numbers(write(m, guided[0], n, L, guided[1]), N)  # (n,)
        means.append(agreement[x].mean())
    assert means[0] + 0.05 < means[1] and means[1] + 0.05 < means[2]
    assert surprise(x, whole) > 20


# ---- from left to right

def test_left_to_right_with_the_exact_classifier_draws_the_class():
    """FUDGE at strength 1, with all words as candidates; with one candidate there is no choice."""
    m, n, judge = make_method("ar", N), 15_000, world.classifier(Absorbing(N))
    torch.manual_seed(0)
    for gamma, p in ((1.0, GIVEN[1]), (0.0, GIVEN[K])):
        denoiser, _ = guide_by_classifier(m, world.left_to_right, ancestral, ONE, gamma, judge,
                                          "first", L)
        assert surprise(numbers(write(m, denoiser, n, 1), N), p) < 4.5
    one = Fudge(world.left_to_right, Absorbing(N), judge, ONE, 1.0, L, candidates=1)
    assert len(write(m, one, 50, 1).unique(dim=0)) == 1
    free = CFG(world.left_to_right, ONE, K, 1.0)
    assert surprise(numbers(write(m, free, n, 1), N), GIVEN[1]) < 4.5


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_beginning_is_read_as_a_text_whose_rest_is_masked_and_of_a_long_one_the_end(length):
    read = []

    def judge(z, t):
        assert ((z == N).double().mean(-1, keepdim=True) - t).abs().max() < 1e-6  # share of masks
        read.append(z)
        return torch.zeros(len(z), K)
    past = torch.tensor([[N, 2, 0, 1]])  # (1, 4) start, and three words
    at = torch.tensor([[False, False, False, True]])  # (1, 4)
    flat = lambda z, t, at: torch.zeros(int(at.sum()), N)
    logits = Fudge(flat, Absorbing(N), judge, ONE, 2.0, length)(past, None, at)
    assert logits.shape == (1, N) and read[0][:, -1].sort().values.tolist() == [0, 1, 2]
    assert read[0][:, :-1].tolist() == [[2, 0, 1][4 - length:]] * N
    Fudge(flat, Absorbing(N), judge, ONE, 2.0, 4)(past[:, :2], None, at[:, 2:])
    assert read[1][:, 0].tolist() == [2] * 3 and (read[1][:, 2:] == N).all()


@pytest.mark.parametrize("window, read", [(None, [N, 2, 0, 1]), (2, [0, 1]), (9, [N, 2, 0, 1])])
def test_guided_ar_reads_its_window_and_no_more(window, read):
    seen = []
    flat = lambda z, t, at: seen.append((z, at)) or torch.zeros(int(at.sum()), N)
    judge = lambda z, t: torch.zeros(len(z), K)
    at = torch.tensor([[False, False, False, True]])  # (1, 4)
    guided = Fudge(flat, Absorbing(N), judge, ONE, 2.0, 4, window=window)
    assert guided(torch.tensor([[N, 2, 0, 1]]), None, at).shape == (1, N)
    (z, at), = seen
    assert z.tolist() == [read] and at.tolist() == [[False] * (len(read) - 1) + [True]]


# ---- what the flags ask for

def model_of(name, classes=("farm", "sea")):
    return SimpleNamespace(method=make_method(name, N), classes=list(classes), encoding=None)


def guided(name, classes=("farm", "sea"), judge=None, window=None, **flags):
    """The denoiser and the sampler that the flags ask for, around a denoiser of None."""
    config = configure(SamplingFlags, **{"sampler": "ancestral", **flags})
    model = model_of(name, classes)
    return guide(config, model, None, sampler_of(config, model), judge, window)


JUDGE = (None, ["farm", "sea"], 16)  # as checkpoints.load.load_classifier returns it


def test_without_a_label_nothing_is_guided():
    denoiser, sampler = guided("udlm", guidance=3.0)
    assert denoiser is None and sampler.step is ancestral.step


@pytest.mark.parametrize("label", ["sea", "1"])
def test_a_label_is_a_name_or_a_number(label):
    denoiser, sampler = guided("mdlm", label=label)
    assert isinstance(denoiser, Labeled) and denoiser.label.tolist() == [1]
    denoiser, sampler = guided("mdlm", label=label, guidance=0.0)
    assert denoiser.label.tolist() == [2]  # no class


@pytest.mark.parametrize("name", [name for name in METHODS
                                  if not load_row(METHODS, name).classifies
                                  and load_row(METHODS, name).takes_steps])
def test_every_method_is_guided_by_labels_in_its_x_theta_or_in_its_step(name):
    """In the step where noise makes wrong words; else in x_theta, which goes with any sampler."""
    denoiser, sampler = guided(name, sampler="ancestral", label="sea", guidance=2.0)
    method = make_method(name, N)
    in_step = method.revises_text and not method.scores_ratios
    assert (sampler.step is not ancestral.step) == in_step
    assert isinstance(denoiser, CFG) != in_step


def test_a_classifier_guides_the_step_and_from_left_to_right_the_next_word():
    denoiser, sampler = guided("udlm", (), JUDGE, label="sea", classifier="out/judge", guidance=2.0)
    assert denoiser is None and sampler.step.keywords["gamma"] == 2.0
    denoiser, _ = guided("ar", (), JUDGE, 8, label="sea", classifier="out/judge", candidates=7)
    assert isinstance(denoiser, Fudge)
    assert (denoiser.window, denoiser.candidates, denoiser.length) == (8, 7, 16)


@pytest.mark.parametrize("name, flags, says", [
    ("mdlm", dict(classifier="out/judge"), "--classifier needs a --label"),
    ("mdlm", dict(label="se"), r"there is no class 'se' \(did you mean sea\?\): give one of farm, "
                               "sea, or its number, 0 to 1"),
    ("mdlm", dict(label="2"), "there is no class '2'"),
    ("udlm", dict(label="sea", guidance=2.0, sampler="psi"), "leave out --sampler and --corrector"),
    ("udlm", dict(label="sea", guidance=2.0, corrector="gibbs"), "leave out --sampler and --corr")])
def test_what_cannot_be_guided_is_refused_in_words(name, flags, says):
    with pytest.raises(UserError, match=says):
        guided(name, **flags)


def test_a_model_without_classes_and_one_that_no_classifier_can_guide_are_refused_in_words():
    with pytest.raises(UserError, match="this model has no classes; train one with --labels"):
        guided("mdlm", (), label="sea")
    with pytest.raises(UserError, match="no classifier can guide sedd: train it with --labels"):
        guided("sedd", (), JUDGE, label="sea", classifier="out/judge")


def test_guided_denoisers_say_what_they_can_still_do():
    """A text that is guided by its label has two rows in a cache; a head cannot be fused into two
    calls; a classifier and a masked prompt need whole texts."""
    network = SimpleNamespace(supports_cache=True, supports_fused_head=True, fixed_shapes=True)
    can = lambda a: (a.supports_cache, a.supports_fused_head, a.fixed_shapes)
    assert can(Labeled(network, ONE)) == (True, True, True)
    assert can(CFG(network, ONE, K, 2.0)) == (2, False, False)
    assert can(Fudge(network, Absorbing(N), None, ONE, 2.0, L)) == (False, False, False)
    assert can(PromptGuided(network, None, N, 2.0)) == (False, False, False)


# ---- towards the prompt

def test_guidance_towards_the_prompt_masks_it_out_of_the_second_call():
    seen, prompt = [], torch.tensor([[True, False, False]])  # (1, L)

    def denoiser(z, t, at):
        seen.append(z.tolist())
        return world.oracle(Absorbing(N))(z, t, at)
    config, model = configure(SamplingFlags, sampler="ancestral", guidance=2.5), model_of("mdlm")
    sampler = sampler_of(config, model)
    both = guide_by_prompt(config, model.method, denoiser, sampler, prompt)
    z, t = torch.tensor([[1, N, N]]), torch.full((1, 1), 0.6).double()  # (1, L), (1, 1)
    ours = both(z, t, z == N)  # (2, N)
    assert seen == [[[1, N, N]], [[N, N, N]]]
    exact = world.oracle(Absorbing(N))
    c, u = (exact(a, t, z == N) for a in (z, torch.full_like(z, N)))  # (2, N) each
    torch.testing.assert_close(ours, (2.5 * c - 1.5 * u).log_softmax(-1))
    config.guidance = 1.0
    assert guide_by_prompt(config, model.method, denoiser, sampler, prompt) is denoiser


@pytest.mark.parametrize("name, flags, window", [
    ("udlm", {}, None), ("bd3lm", {}, None), ("pgm", {}, None), ("ar", {}, None),
    ("mdlm", dict(sampler="semi-ar", cache="dual"), None), ("mdlm", {}, 16)])
def test_a_prompt_that_cannot_be_masked_out_is_refused_in_words(name, flags, window):
    flags, model = {"sampler": "ancestral", **flags}, model_of(name)
    config = configure(SamplingFlags, guidance=2.0, **flags)
    with pytest.raises(UserError, match="it is for mdlm, md4, .*, audm, .*, without --cache, "):
        guide_by_prompt(config, model.method, None, sampler_of(config, model), None, window)


@pytest.mark.parametrize("name", ["mdlm", "md4", "radd"])
def test_methods_that_read_masked_texts_are_guided_by_their_prompt(name):
    config, model = configure(SamplingFlags, sampler="ancestral", guidance=2.0), model_of(name)
    sampler = sampler_of(config, model)
    assert isinstance(guide_by_prompt(config, model.method, None, sampler, None), PromptGuided)
