"""The sampler of texts of any length: its law, its lengths, its prompts. All through exact
denoisers of a world of 15 texts."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from any_length import TEXTS, FewTexts, flexmdm, numbers_of, once_for_each
from data.prompt import encode_prompt
from data.sentences import SentenceCorpus
from diffusion import probabilities
from flags import UserError
from methods import make_method
from samplers import make_sampler
from samplers.insertion import Draft, poisson, share_out
from world import distance

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "any_length.npz")
P = torch.from_numpy(REFERENCE["flexworld/p"])  # (15,)
LANGUAGE, END = FewTexts(TEXTS, P, 3), 2
LENGTH = torch.tensor([len(text) for text in TEXTS])  # (15,)
LAW = torch.stack([P[LENGTH == n].sum() for n in range(4)])  # (4,)


def drawn(steps, n, L=3, gone="linear", z=None, frozen=None, **flags):
    """Texts of the world through its exact denoiser, with room for L tokens. -> (n, L)"""
    method = flexmdm(3, END, gone=gone)
    sampler = make_sampler("insertion", method, **flags)
    torch.manual_seed(0)
    z = method.prior((n, L)) if z is None else z.expand(n, -1)
    frozen = torch.zeros_like(z).bool() if frozen is None else frozen.expand(n, -1)
    *_, x = method.sample(once_for_each(method.oracle(LANGUAGE)), z, frozen, steps, sampler)
    return x


def far(x):
    """Total variation of texts (n, L) from the exact law; impossible ones count."""
    number = numbers_of(x, END)  # (n,)
    q = torch.bincount(number + 1, minlength=16) / len(x)  # (16,) first: impossible ones
    return ((q[0] + (q[1:] - P).abs().sum()) / 2).item()


@pytest.mark.parametrize("gone", ["linear", "sine"])
def test_texts_and_lengths_have_the_law_of_the_model(gone):
    """In 48 steps: total variation, which is half the root of `distance` at most, below 0.02."""
    x = drawn(48, 8000, gone=gone)
    chi, error = distance(numbers_of(x, END), P)
    assert chi < 0.0016 + 3 * error, (chi, error)
    chi, error = distance((x != END).sum(-1), LAW)
    assert chi < 0.0016 + 3 * error, (chi, error)


def test_more_steps_are_better_and_short_ones_last_are_better_than_equal_ones():
    """With room for two tokens too many, so that few steps write impossible texts."""
    short = [far(drawn(steps, 2000, 5)) for steps in (4, 16)]
    equal = [far(drawn(steps, 2000, 5, spacing="equal")) for steps in (4, 16)]
    assert short[0] > short[1] + 0.05 and equal[0] > equal[1] + 0.05
    assert equal[0] > short[0] + 0.03 and equal[1] > short[1] + 0.03, (short, equal)


def test_the_mean_length_is_nearly_exact_in_few_steps():
    """Nothing is forgotten in the last step, long as it may be, and no mask is left."""
    exact = (LAW @ torch.arange(4).double()).item()
    for steps, spacing, off in ((16, "quadratic", 0.08), (2, "equal", 0.2)):
        x = drawn(steps, 2000, 5, spacing=spacing)
        n = (x != END).sum(-1).double()
        assert abs(n.mean() - exact) < off * exact and x.max() < 3, n.mean() / exact


def test_the_law_of_what_a_prompt_leaves_open_is_the_conditional_law():
    """"a ... a": texts that begin and end with a; the two given tokens stay, and their order."""
    z = torch.tensor([[0, END, 0, END, END]])
    frozen = torch.tensor([[True, False, True, True, True]])
    number = numbers_of(drawn(48, 2000, 5, z=z, frozen=frozen), END)
    fits = torch.tensor([float(len(t) >= 2 and t[0] == t[-1] == 0) for t in TEXTS])
    exact = P * fits / (P * fits).sum()
    q = torch.bincount(number + 1, minlength=16)[1:] / 2000
    assert (q[exact == 0] == 0).all() and 0.97 < q.sum() <= 1
    assert ((q - exact).abs() < 0.03).all()


def test_nothing_enters_a_closed_gap_and_given_tokens_keep_their_order():
    """Two neighbors of the prompt stay neighbors; a text whose end is given begins and ends so."""
    method = make_method("flexmdm", 6)
    method.end_id = 5
    z = torch.tensor([[1, 2, 0, 3, 5, 5, 5, 5]]).expand(200, -1)
    frozen = torch.tensor([[True, True, False, True, True, True, True, True]]).expand(200, -1)
    logits = torch.zeros(200, 9, 8)
    logits[..., 5] = -torch.inf
    states = [*method.sample(lambda z, t, at: logits[at], z, frozen, 12)]
    assert len(states) == method.count_states(8, 12) == 13
    for x in states:
        n = (x != 5).sum(-1)
        assert (x[:, 0] == 1).all() and (x[:, 1] == 2).all()
        assert (x.gather(1, n[:, None] - 1) == 3).all()
    assert len(n.unique()) > 3 and n.max() <= 8 and (x < 6).all()


def test_texts_that_do_not_end_have_as_many_tokens_as_places_and_given_ones_stay():
    method = make_method("flexmdm", 5)
    torch.manual_seed(0)
    given, frozen = torch.randint(5, (50, 9)), torch.rand(50, 9) < 0.4
    z = torch.where(frozen, given, method.prior((50, 9)))
    for x in method.sample(lambda z, t, at: torch.zeros(int(at.sum()), 7), z, frozen, 6):
        assert (x == given)[frozen].all()
    assert (x < 5).all()


def test_masks_go_where_they_are_put_and_no_further_than_there_is_room():
    process = flexmdm(9, None).process
    z = torch.tensor([[1, 9, 9, 2, 9, 3, 9]])
    frozen = torch.tensor([[True, False, False, True, False, True, False]])
    draft = Draft.begin(process, z, frozen)
    assert draft.room[0, :4].tolist() == [0, 2, 1, 1]
    k = torch.tensor([[5, 1, 9, 0, 0, 0, 0, 0]])
    draft = draft.insert(process, k)
    assert draft.z[0, :6].tolist() == [1, 9, 2, 9, 3, 10]
    assert draft.text(process).tolist() == [[1, 9, 9, 2, 9, 3, 9]]
    assert draft.takes(process)[0].tolist() == [False, True, True, False, False, True, False, False]
    draft = draft.insert(process, share_out(draft, draft.takes(process).double()))
    assert draft.size(process).item() == 7 and draft.room.sum() == 0


def test_draws_of_poisson_have_its_law():
    rate = torch.tensor([[0.0, 0.3, 2.5]], dtype=torch.double).expand(20_000, -1)
    torch.manual_seed(0)
    k = poisson(rate, 30)  # (n, 3)
    for j in range(3):
        lam = rate[0, j].item()
        law = [math.exp(-lam) * lam ** i / math.factorial(i) for i in range(31)]
        chi, error = distance(k[:, j], torch.tensor(law, dtype=torch.double))
        assert abs(chi) < 4 * error + 1e-9
    assert poisson(torch.full((9, 1), 50.0).double(), 4).max() == 4


def test_as_many_of_the_most_confident_masks_open():
    """`surest` opens as many masks as `random`, the surest ones: no draw of the model."""
    method = make_method("flexmdm", 4)
    sampler = make_sampler("insertion", method, opens="surest")
    draft = Draft.begin(method.process, torch.full((400, 6), 4), torch.zeros(400, 6).bool())
    draft = draft.insert(method.process, torch.tensor([[6, *[0] * 6]]).expand(400, -1))
    logits = torch.zeros(400, 7, 6)
    logits[:, torch.arange(6), 1] = 4.0 * torch.arange(6)  # the last place is the surest
    torch.manual_seed(0)
    t, s = torch.tensor(0.6).double(), torch.tensor(0.3).double()
    new = sampler.step(method.process, lambda z, t, at: logits[at], draft, t, s, probabilities)
    opened = new.z[:, :6] < 4  # (400, 6)
    n = opened.sum(-1)
    assert abs(n.double().mean() - 3) < 0.25 and not sampler.draws_from_model
    assert all(opened[i, 6 - n[i]:].all() for i in range(400))


# ---- prompts

def test_a_gap_of_unknown_length_is_one_place_and_the_text_is_closed_behind_the_prompt():
    data = SentenceCorpus()
    words, end = data.language.words, data.end
    for prompt in ("the ... dog ... .", "the _ dog __ ."):
        ids, frozen = encode_prompt(prompt, "_", data.encoding, 0, 20, end=end)
        kept = [words[i] for i, f in zip(ids.tolist(), frozen.tolist()) if f]
        assert kept[:3] == ["the", "dog", "."] and set(kept[3:]) == {"<|endoftext|>"}
        assert len(ids) == 20 and frozen[-1] and not frozen[1]
    ids, frozen = encode_prompt("the dog", "_", data.encoding, 0, 20, end=end)
    assert frozen.tolist() == [True, True, *[False] * 18]
    with pytest.raises(UserError, match="--length 30: these texts end by themselves"):
        encode_prompt("the ...", "_", data.encoding, 30, 20, end=end)


def test_gaps_of_a_prompt_are_filled_with_sentences():
    """The words of the prompt stand in their order, and nearly all sentences parse."""
    data = SentenceCorpus()
    method = make_method("flexmdm", data.encoding.n_vocab)
    method.on_data(data)
    ids, frozen = encode_prompt("the ... dog ... .", "_", data.encoding, 0, 20, end=data.end)
    torch.manual_seed(0)
    frozen = frozen.expand(30, -1)
    z = torch.where(frozen, ids, method.prior((30, 20)))
    *_, x = method.sample(method.oracle(data.language), z, frozen, 48)
    texts = [data.text(row).split() for row in x.tolist()]
    assert all(text[0] == "the" and text[-1] == "." and "dog" in text for text in texts)
    assert len({len(text) for text in texts}) > 4
    assert data.language.is_grammatical(x).double().mean() > 0.8


def test_other_methods_have_no_masks_to_insert():
    with pytest.raises(UserError, match="--sampler insertion inserts masks, which mdlm does not"):
        make_sampler("insertion", make_method("mdlm", 3))
