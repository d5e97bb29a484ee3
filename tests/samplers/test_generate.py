"""Texts leave their batch as they finish, calls are counted, and all states are announced."""
import pytest
import torch

from checkpoints.load import load_chosen
from flags import UserError, configure, load_row
from kinds import enough, in_place
from methods import METHODS, make_method
from oracle import exact
from samplers import SAMPLERS, SamplingFlags, make_sampler, samplers_for
from samplers.generate import (
    CallCounter,
    Writer,
    finished_texts,
    generate,
    in_order_of_completion,
    prepend_bos,
    trajectory,
    truncate_at_eos,
    writer_of,
)

WRITERS = [name for name in METHODS if not load_row(METHODS, name).classifies]


MADE = {name: make_method(name, 8) for name in WRITERS}
PAIRS = enough([(name, sampler) for name in WRITERS for sampler in samplers_for(MADE[name])], MADE)


def counts(sampler):
    """The function that counts the states of a sampler."""
    return load_row(SAMPLERS, sampler).count_states


# each method that writes in a way of its own, and each way to count: others share them, and
# test_sampler_table.py counts the states of them all
COUNTED = [*{counts(sampler): (name, sampler) for name, sampler in reversed(PAIRS)}.values()]
COUNTED += [pair for pair in PAIRS if pair[1] == "ancestral" and pair not in COUNTED]


def rough(V):
    """A denoiser that knows nothing, of the network's shape."""
    return lambda z, t, at=None, **layout: torch.randn(int(at.sum()), V)


class Spy:
    """A viewer."""
    def __init__(self):
        self.steps = []

    def show(self, step, z):
        self.steps.append(step)


# ---- texts leave as they finish

@pytest.mark.parametrize("name", ["ar", "bd3lm"])
def test_texts_that_drew_their_end_come_before_the_rest_and_as_they_will_be(name):
    torch.manual_seed(0)
    method = make_method(name, 6)
    frozen = torch.zeros(40, 24, dtype=torch.bool)  # (B, L)
    frozen[:5, -2] = True  # these have a given token near the end: they go on to it
    given, states = torch.full((40, 24), 3), []  # (B, L)

    def spied():
        for z in trajectory(method, rough(method.vocab_size), given, frozen, 4, end=5):
            states.append(z)
            yield z

    texts = in_order_of_completion(spied(), frozen, 5, method.block_length)
    came = [(i, row, len(states)) for i, row in texts]
    assert sorted(i for i, *_ in came) == list(range(40))
    assert all(row == states[-1][i].tolist() for i, row, _ in came)
    early = [i for i, _, when in came if when < len(states)]
    assert len(early) >= 20 and min(early) >= 5
    assert [when for *_, when in came] == sorted(when for *_, when in came)


def test_an_end_in_the_last_block_waits_for_samplers_that_change_words_again():
    frozen = torch.zeros(3, 12, dtype=torch.bool)  # (B, L)
    z = torch.tensor([[1] * 8 + [5] * 4, [1] * 7 + [5] * 5, [1] * 4 + [5] * 4 + [6] * 4])  # (B, L)
    assert finished_texts(z, frozen, 5, 4).tolist() == [False, True, False]
    assert not finished_texts(z, frozen, None, 4).any()
    frozen[1, 8] = True
    assert not finished_texts(z, frozen, 5, 4).any()


def test_with_a_viewer_the_texts_wait_for_the_end_of_their_batch():
    method, spy = make_method("ar", 6), Spy()
    frozen = torch.zeros(9, 8, dtype=torch.bool)  # (B, L)
    states = trajectory(method, rough(7), frozen.long(), frozen, 1, end=5)
    came = [len(spy.steps) for _ in in_order_of_completion(states, frozen, 5, 1, [spy])]
    assert set(came) == {len(spy.steps)} and spy.steps == list(range(len(spy.steps)))


def test_a_text_is_cut_at_the_first_end_that_was_drawn():
    frozen = [True, False, False, False]
    assert truncate_at_eos([7, 1, 7, 2], frozen, 7) == [7, 1]
    assert truncate_at_eos([7, 1, 2, 2], frozen, None) == [7, 1, 2, 2]


# ---- one trajectory for all

@pytest.mark.parametrize("name", in_place(WRITERS))
def test_every_method_begins_with_noise_keeps_given_tokens_and_ends_in_text(name):
    """What is not written yet is never an id of the text, unless noise is made of words."""
    model, n = exact(name), 3
    torch.manual_seed(0)
    given = torch.randint(model.encoding.n_vocab, (n, 16))  # (B, L)
    frozen = torch.rand(n, 16) < 0.3  # (B, L)
    states = list(trajectory(model.method, model.denoiser, given, frozen, 3))
    assert all((z == given)[frozen].all() for z in states)
    assert (states[-1] < model.encoding.n_vocab).all()
    if model.method.opens_masks or model.method.process is None:
        assert (states[0][~frozen] >= model.encoding.n_vocab).all()


@pytest.mark.parametrize("name, sampler", COUNTED)
def test_no_more_states_than_announced(name, sampler):
    """The bar of --watch ends with the text: it does not stop early or go on after it."""
    config = configure(SamplingFlags, oracle=name, sampler=sampler, steps=5)
    model, frozen = load_chosen(config, "cpu"), torch.zeros(16, dtype=torch.bool)  # (L,)
    writer = writer_of(config, model, model.denoiser, frozen)
    _, *states = writer.trajectory(frozen.long()[None], frozen[None])
    assert 1 <= len(states) <= writer.count_states(16)
    if sampler == "ancestral" and name not in ("eso_lm", "ilm"):  # which draw how many calls
        assert len(states) == writer.count_states(16)


@pytest.mark.parametrize("length, states", [(8, 6), (20, 6 * 4), (21, 6 * 5), (9, 6 * 2)])
def test_the_states_of_all_windows_are_announced(length, states):
    method = make_method("udlm", 5)
    writer = Writer(method, rough(5), make_sampler("ancestral", method), None, 6, 8, 4)
    assert writer.count_states(length) == states


# ---- the flags

def test_a_window_must_hold_whole_blocks_and_a_stride_must_not_leave_gaps():
    frozen = torch.zeros(64, dtype=torch.bool)  # (L,)
    of = lambda name, **options: writer_of(configure(SamplingFlags, oracle=name), exact(name), None,
                                           frozen, **options)
    assert of("bd3lm").window == 32 and of("bd3lm", window=8).window == 8
    with pytest.raises(UserError, match="--window 6 must be a multiple of the block of 4 tokens"):
        of("bd3lm", window=6)
    assert (of("mdlm").window, of("mdlm").stride) == (32, 16) and of("mdlm", stride=3).stride == 3
    assert of("mdlm", stride=None).window is None and of("mdlm").end is None
    with pytest.raises(UserError, match="--stride 33 must be at most 32"):
        of("mdlm", stride=33)


def test_calls_texts_and_positions_are_counted():
    counter = CallCounter(rough(6))
    at = torch.tensor([[True, True, False], [False, False, False]])  # (B, L)
    counter(at.long(), None, at)
    counter(at.long(), None, torch.ones_like(at))
    assert (counter.calls, counter.texts, counter.positions) == (2, 3, 8)
    assert str(counter) == "2 network calls, 8 positions scored"


def test_the_first_token_of_a_published_network_is_given_unless_the_prompt_begins_elsewhere():
    method, given = make_method("mdlm", 5), torch.ones(2, 4, dtype=torch.long)  # (B, L)
    frozen = given > 1  # (B, L)
    assert prepend_bos(method, given, frozen) == (given, frozen)
    method.first_token = 3
    begun, kept = prepend_bos(method, given, frozen)  # (B, L) each
    assert begun[:, 0].tolist() == [3, 3] and kept.sum() == 2
    assert prepend_bos(method, given, ~frozen)[0] is given
    assert (generate(method, rough(6), 2, 4, 3)[:, 0] == 3).all()
