"""The prompt of a chat, where an answer ends, and when a reply is finished."""
from types import SimpleNamespace

import pytest
import torch

from data import load_data
from data.chat import ids_of
from diffusion import probabilities
from flags import UserError, configure
from methods import METHODS, load_row, make_method
from methods.mdlm import MDLM
from own_chance import OwnChance, knows_its_own_text
from samplers import SAMPLERS, SamplingFlags, make_sampler
from samplers.generate import Writer
from samplers.reply import answer, chat_template, default_sampler, finished, reply


@pytest.fixture(scope="module")
def encoding():
    return load_data("chat", 256, "bytes", sft=True).encoding


def test_an_answer_ends_at_its_first_end_and_is_done_once_no_mask_is_left_before_it(encoding):
    end = encoding.eot_token
    z = torch.tensor([[5, 6, 9, 7, 9], [5, 7, 6, 9, 6], [5, 9, 7, 7, 7], [5, 6, 6, 6, 6],
                      [9, 7, 9, 7, 7]])
    frozen = (torch.arange(5) < 1).expand(5, -1)  # (5, 5) 5 a prompt, 7 the mask, 9 the end
    assert finished(z, frozen, 7, 9).tolist() == [True, False, True, True, False]
    ids = ids_of(encoding, ["Hello!", "Good morning!"])
    start = len(ids_of(encoding, ["Hello!"]))
    for rest in ([end, end, 3], [ids[0], 3, end], []):
        assert answer(torch.tensor(ids + rest), start, encoding) == "Good morning!"


def test_the_oldest_turns_are_dropped_until_an_answer_has_room(encoding):
    messages = ["Hello!", "Hello!", "What is 3 plus 4?", "3 plus 4 is 7.", "And now?"]
    parts = [ids_of(encoding, messages[i:]) for i in (0, 2, 4)]
    for length in range(20, 60):
        given, frozen = chat_template(messages, encoding, length)
        n = int(frozen.sum())
        assert frozen[:n].all() and len(frozen) == length
        longest = next(ids for ids in parts if len(ids) <= length - length // 4)
        assert given[:n].tolist() == longest
    with pytest.raises(UserError, match="shorten it"):
        chat_template(["no " * 40], encoding, 48)


@pytest.mark.parametrize("name", [name for name in SAMPLERS
                                  if not load_row(SAMPLERS, name)().fits(MDLM(10))])
@pytest.mark.parametrize("corrector", ["draw", "gibbs"])
def test_an_end_ends_a_reply_only_where_no_word_is_rewritten(name, corrector):
    """The end stands after the first step, before all masks; in the second another word does."""
    method = MDLM(10)
    fake = make_sampler(name, method, corrector)
    states = [torch.tensor(z) for z in ([[3, 9, 10, 10]], [[3, 4, 5, 9]])]
    sampler = SimpleNamespace(rewrites=fake.rewrites)
    method.sample = lambda *args: iter(states)
    writer = Writer(method, None, sampler, probabilities, steps=2)
    given, frozen = torch.tensor([[3, 0, 0, 0]]), torch.tensor([[True, False, False, False]])
    seen = []
    z = reply(writer, given, frozen, 9, lambda step, z: seen.append(step))
    stays = corrector == "draw" and name not in (
        "psi", "remdm-conf", "top-k", "p2", "edit", "proseco")
    assert torch.equal(z, states[0 if stays else 1]) and seen == ([1] if stays else [1, 2])


@pytest.mark.parametrize("name, options", [
    ("mdlm", dict(name="semi-ar", decode_block=4, threshold=0.9)),
    ("mdlm", dict(name="semi-ar", decode_block=3, eos_last=True)),
    ("mdlm", dict(name="confidence")), ("mdlm", dict(name="psi", eta=0.3)),
    ("mdlm", dict(name="ancestral", corrector="gibbs")), ("udlm", dict(name="ancestral")),
    ("bd3lm", dict(name="first-hitting")), ("ar", dict(name="ancestral"))], ids=str)
def test_an_answer_does_not_depend_on_the_other_prompts_of_its_batch_nor_on_its_size(name, options):
    """Five prompts of different lengths, one of them a whole text: with random numbers of its own,
    each answer, up to its first end, is the same alone and beside any others."""
    method, early = make_method(name, 5, diffusion_block=4), False
    given = torch.arange(60).view(5, 12) * 7 % 5  # (5, 12)
    starts = [2, 3, 4, 7, 12]
    frozen = torch.arange(12) < torch.tensor(starts)[:, None]  # (5, 12)
    sampler = make_sampler(method=method, **options)

    def answers(end, *rows):
        sampler.eos = end
        writer = Writer(method, knows_its_own_text, sampler, probabilities, steps=6, end=end)
        with OwnChance(end, steps=False):
            z = reply(writer, given[list(rows)], frozen[list(rows)], end)  # (b, 12)
        words = {i: row.tolist()[starts[i]:] for i, row in zip(rows, z)}
        return {i: row[:row.index(end)] if end in row else row for i, row in words.items()}
    for end in range(5):
        together = answers(end, 0, 1, 2, 3, 4)
        early |= any(0 < len(together[i]) < 12 - starts[i] for i in range(4))
        for rows in ((0,), (1,), (2,), (3,), (3, 1), (4, 2, 0)):
            assert all(words == together[i] for i, words in answers(end, *rows).items())
    assert early


@pytest.mark.parametrize("name", [
    name for name in METHODS if not load_row(METHODS, name).classifies])
def test_a_chat_has_a_sampler_that_fits_every_method(name):
    method = make_method(name, 11)
    config = configure(SamplingFlags, sampler="semi-ar")
    config = default_sampler(config, method)
    assert load_row(SAMPLERS, config.sampler)().fits(method) is None
    assert (config.sampler == "semi-ar") == (method.opens_masks and method.bidirectional
                                             and method.samplers is None)
    explicit = configure(SamplingFlags, sampler="psi")
    assert default_sampler(explicit, method) is explicit
