"""
What holds for every row of SAMPLERS and CORRECTORS: a new row is proven here without a new test.

It runs for every method that it fits, and refuses the others in one line. Given tokens stay, no
mask is left, and there are no more states than it says. If it says that it draws from the model,
it does, through the exact denoiser of a world of 27 texts.
"""
import contextlib
import functools

import pytest
import torch

import world
from flags import UserError, configure, flags_of, load_row, parse
from kinds import enough, one_of_each
from methods import METHODS
from own_chance import OwnChance, knows_its_own_text
from samplers import CORRECTORS, SAMPLERS, SamplingFlags, make_sampler, sampler_of, samplers_for
from samplers.generate import CallCounter
from world import L, N, P, distance, numbers

WRITERS = [name for name in METHODS if not load_row(METHODS, name).classifies]
BIASED = {"klass": dict(certainty=0.4, drift=10.0, patience=1),  # flags that show it in three words
          "edit": dict(open_above=0.4, edit_above=0.4), "arpc": dict(steps=8),
          "renoise": dict(projection="argmax", steps=8)}
# texts that show it: the error of `distance` is 7 / n, and what all but the first are off by, 0.07
# and more, is 4 times the limit of 2000 texts, and 0.5 of unroll 8 times that of 500
BIASED_TEXTS = {"remdm-conf": 20_000, "unroll": 500}
# without a reward or a grammar they are ancestral: test_search.py, test_constraints.py
SEARCHES = ["best-of", "path-integral", "local", "smc", "particle-gibbs", "grammar"]
ERROR = 0.003  # of a sampler in 64 steps that draws from the model: sum (q - p)^2 / p over texts


def method_of(name, n_tokens, block):
    """A method in a small size. block: tokens per block, where there are blocks"""
    return world.make_world_method(name, n_tokens, diffusion_block=block, diffusion_steps=128,
                                   dim=6)


def rough(z, t, at=None, words=None, **layout):
    """A denoiser of 5 symbols that knows nothing, of the network's shape for any method."""
    if words is not None:  # of latents: words of their decoder, or latents at time t
        z, at = (words, at) if t is None else (z, None)
    logits = torch.randn(*z.shape[:2], 6, generator=torch.Generator().manual_seed(0))  # (B, L, 6)
    return logits if at is None else logits[at]


def fits(corrector, method):
    return not load_row(CORRECTORS, corrector)().fits(method)


METHOD = {name: method_of(name, 5, 4) for name in WRITERS}
PAIRS = [(name, sampler) for name in WRITERS for sampler in samplers_for(METHOD[name])]
TRIPLES = [(*pair, corrector) for pair in PAIRS for corrector in CORRECTORS
           if fits(corrector, METHOD[pair[0]])]


ROUNDS = [name for name in CORRECTORS if "rounds" in flags_of(load_row(CORRECTORS, name))]


DIFFERENT = one_of_each(METHOD)


def is_alone(sampler, corrector):
    """Whether none of DIFFERENT has this sampler with this corrector."""
    return not any((name, sampler, corrector) in TRIPLES for name in DIFFERENT)


# ---- every row runs for what it fits

@pytest.mark.parametrize("name, sampler, corrector", [
    case for case in enough(TRIPLES, METHOD)
    if case[1] in ("ancestral", "psi") or case[2] == "draw"])
def test_given_tokens_always_survive_and_the_end_is_text(name, sampler, corrector):
    """In no more states than announced, and without a network call if all is given."""
    method, short = METHOD[name], dict(rounds=3) if corrector in ROUNDS else {}
    sampler = make_sampler(sampler, method, corrector, **short)
    torch.manual_seed(0)
    given, frozen = torch.randint(5, (10, 12)), torch.rand(10, 12) < 0.4  # (10, 12) each
    frozen[0], frozen[1] = True, False
    z = torch.where(frozen, given, method.prior(given.shape))  # (10, 12)
    for steps in (1, 3, 20):
        states = list(method.sample(rough, z, frozen, steps, sampler))
        assert all((state == given)[frozen].all() for state in states) and (states[-1] < 5).all()
        inside = sampler.count_states(method.block_length or 12, steps)
        assert len(states) <= method.count_states(12, inside)
    spy = CallCounter(rough)
    for state in method.sample(spy, given, torch.ones_like(frozen), 3, sampler):
        assert torch.equal(state, given)
    assert spy.calls == 0


@pytest.mark.parametrize("name, sampler", [pair for pair in PAIRS if pair[0] in DIFFERENT])
def test_texts_are_the_same_again_from_one_seed_and_others_from_another(name, sampler):
    def write(seed):
        torch.manual_seed(seed)
        z = METHOD[name].prior((20, 12))  # (20, 12)
        nothing = torch.zeros_like(z, dtype=torch.bool)  # (20, 12)
        *_, z = METHOD[name].sample(rough, z, nothing, 5, make_sampler(sampler, METHOD[name]))
        return z
    assert torch.equal(write(1), write(1)) and not torch.equal(write(1), write(2))


# ---- a text is the same alone and in a batch

# Given tokens of five texts: none, all, a prompt, a gap, and padding behind a short text.
GIVEN = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0],
                      [0, 1, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]).bool()  # (5, L)
ONE_TEXT = dict(decode_block=3, rounds=3, gamma=3)  # values for texts of 8 tokens
NETWORK_ONLY = ["cache", "draft", "energy", "planner", "reward"]  # of networks: see their own tests


def variants(name, sampler, corrector):
    """The flags as they are by default, and with another value of each in turn."""
    fields = flags_of(load_row(SAMPLERS, sampler)) | flags_of(load_row(CORRECTORS, corrector))
    small = {flag: value for flag, value in ONE_TEXT.items() if flag in fields}
    others = []
    for flag in fields.keys() - small.keys() - set(NETWORK_ONLY):
        default, choices = fields[flag].default, fields[flag].metadata["choices"]
        if choices:
            other = choices[-1]
        elif isinstance(default, bool):
            other = not default
        else:
            other = default + 1 if isinstance(default, int) else default / 2 or 0.5
        others.append({**small, flag: other})
    return [small, *(options for options in others if accepts(name, sampler, corrector, options))]


def accepts(name, sampler, corrector, options):
    with contextlib.suppress(UserError):
        return make_sampler(sampler, METHOD[name], corrector, **options)


@pytest.mark.parametrize("name, sampler, corrector", [
    case for case in TRIPLES if (case[0] in DIFFERENT or is_alone(*case[1:])) and (
        case[1] == "ancestral" or case[2] == "draw")])
def test_a_text_depends_neither_on_the_batch_nor_on_prompts_and_padding_of_others(
        name, sampler, corrector):
    """Bit by bit, with random numbers of its own: so its distribution is the same, too. In batches
    of 1, 2 and 5, with any flag, at once, and where a text of others ends early."""
    method, given = METHOD[name], torch.arange(40).view(5, 8) * 3 % 5  # (5, 8)

    def write(rows, sampler, steps, end):
        with OwnChance(steps, rows.start, steps=not method.left_to_right) as chance:
            z = torch.where(GIVEN[rows], given[rows], method.prior(given[rows].shape))  # (b, 8)
            return chance.last(method.sample(knows_its_own_text, z, GIVEN[rows], steps, sampler,
                                             end=end))  # (b, 8)
    first, *others = variants(name, sampler, corrector)
    for steps, end, options in ((1, None, first), *((4, 2 if method.left_to_right else None, each)
                                                    for each in (first, *others))):
        made = make_sampler(sampler, method, corrector, **options)
        together = write(slice(0, 5), made, steps, end)  # (5, 8)
        for rows in (slice(0, 1), slice(2, 3), slice(3, 5)):
            assert torch.equal(write(rows, made, steps, end), together[rows]), options


# ---- every row draws from the model, or says that it does not

@functools.cache
def drawn(name, sampler, corrector="draw", n=4_000, steps=64, **options):
    """Texts of the world through its exact denoiser: how far from their probabilities? Fewer where
    no two states are alike.

    -> the distance, its standard error
    """
    method = method_of(name, N, L)
    points = {"ddpm", "bfn", "geodesic"} & {*(method.samplers or ())}
    n, steps = (min(n, 1000), min(steps, 32)) if points else (n, steps)
    sampler = make_sampler(sampler, method, corrector, **options)
    torch.manual_seed(0)
    z, nothing = method.prior((n, L)), torch.zeros(n, L, dtype=torch.bool)  # (n, L) each
    denoiser = world.by_state(method.oracle(world.LANGUAGE))
    *_, z = method.sample(denoiser, z, nothing, steps, sampler)
    return distance(numbers(z, N), P)


@pytest.mark.parametrize("name, sampler", [
    (name, sampler) for name, sampler in PAIRS
    if name in DIFFERENT and load_row(SAMPLERS, sampler)().draws_from_model
    and sampler not in SEARCHES])
def test_a_sampler_that_says_so_draws_from_the_model(name, sampler):
    """In 64 steps, within 4 standard errors and ERROR, which is what so few steps cost."""
    far, error = drawn(name, sampler, "draw")
    assert far < ERROR + 4 * error


@pytest.mark.parametrize("sampler", [
    name for name in SAMPLERS if not load_row(SAMPLERS, name)().draws_from_model
    and any(name in pair for pair in PAIRS)])  # redraw is for audm --told words: test_redraw.py
def test_a_sampler_that_denies_it_does_not_draw_from_the_model(sampler):
    name = next(name for name in WRITERS if (name, sampler) in PAIRS)
    far, error = drawn(name, sampler, n=BIASED_TEXTS.get(sampler, 2000), **BIASED.get(sampler, {}))
    assert far > ERROR + 4 * error


@pytest.mark.parametrize("corrector", CORRECTORS)
def test_a_corrector_keeps_the_models_distribution_if_it_says_so(corrector):
    names = [name for name in ("mdlm", "udlm") if fits(corrector, METHOD[name])]
    for name in names or ["blockgen"]:
        far, error = drawn(name, "ancestral", corrector)
        keeps = make_sampler("ancestral", METHOD[name], corrector).draws_from_model
        assert far < ERROR + 4 * error if keeps else far > 10 * ERROR


# ---- refusals

@pytest.mark.parametrize("name", WRITERS)
def test_a_sampler_that_does_not_fit_is_refused_in_one_line_that_names_those_that_do(name):
    good = samplers_for(METHOD[name])
    assert good != []
    for sampler in SAMPLERS.keys() - {*good}:
        with pytest.raises(UserError) as refused:
            make_sampler(sampler, METHOD[name])
        message, advice = str(refused.value).rsplit(": take ", 1)
        assert message.startswith(f"--sampler {sampler} ") and name in message, sampler
        assert "\n" not in message and advice.split(" or ") == good, sampler


@pytest.mark.parametrize("name", WRITERS)
def test_a_corrector_that_does_not_fit_is_refused_in_one_line_that_says_what_to_do(name):
    for corrector in CORRECTORS:
        if not fits(corrector, METHOD[name]):
            with pytest.raises(UserError) as refused:
                make_sampler(samplers_for(METHOD[name])[0], METHOD[name], corrector)
            message = str(refused.value)
            assert message.startswith(f"--corrector {corrector} ") and name in message, corrector
            assert message.endswith(("leave it out", "or --sampler psi")), corrector
            assert "\n" not in message, corrector


@pytest.mark.parametrize("sampler, method, says", [
    ("confidence", "udlm", "--sampler confidence chooses among masks, which udlm does not have: "
                           "take ancestral or psi"),
    ("semi-ar", "bd3lm", "the masks of a whole text, which bd3lm does not read"),
    ("euler", "mdlm", "steps by ratios of probabilities, which mdlm does not predict"),
    ("psi", "genmd4", "does not work with genmd4, which takes steps of its own: take ancestral"),
    ("psi", "sedd", "steps of its own: take ancestral or analytic or euler")])
def test_refusals_read_well(sampler, method, says):
    with pytest.raises(UserError, match=says):
        make_sampler(sampler, METHOD[method])


def test_a_grid_is_refused_by_methods_with_steps_of_their_own_without_other_advice():
    with pytest.raises(UserError, match="leave out --grid$"):
        make_sampler("ancestral", METHOD["genmd4"], grid="cosine")


# ---- flags

FLAGS = [(table, row, flag) for table, rows in (("sampler", SAMPLERS), ("corrector", CORRECTORS))
         for row in rows for flag in flags_of(load_row(rows, row))]


@pytest.mark.parametrize("table, row, flag", FLAGS)
def test_a_flag_of_one_row_is_refused_beside_another_and_says_whose_it_is(table, row, flag, capsys):
    rows = {"sampler": SAMPLERS, "corrector": CORRECTORS}[table]
    other = next(name for name in rows if flag not in flags_of(load_row(rows, name)))
    value = flags_of(load_row(rows, row))[flag].default
    with pytest.raises(SystemExit):
        parse(SamplingFlags, ["--oracle=mdlm", f"--{table}={other}", f"--{flag}={value}"])
    error = capsys.readouterr().err
    assert f"--{flag} belongs to " in error and f"--{table} " in error and row in error
    assert error.count("\n") == 1
    config, given = parse(SamplingFlags, ["--oracle=mdlm", f"--{table}={row}", f"--{flag}={value}"])
    assert getattr(config, flag) == value and given == ["oracle", table, flag]


def test_flags_reach_the_sampler_and_its_corrector():
    """And one that neither has is an error of the code, not a silent default."""
    config = configure(SamplingFlags, sampler="psi", corrector="gibbs", eta=0.5, rounds=7)
    model = type("Model", (), {"method": METHOD["udlm"]})
    sampler = sampler_of(config, model)
    assert sampler.rounds == 7 and sampler.sampler.eta == 0.5 and sampler.sampler.kappa == "cap"
    with pytest.raises(TypeError):
        make_sampler("psi", METHOD["udlm"], grid="cosine")


@pytest.mark.parametrize("table, rows", [("sampler", SAMPLERS), ("corrector", CORRECTORS)])
def test_every_row_says_in_one_sentence_what_it_is(table, rows):
    for name in rows:
        first = load_row(rows, name).__doc__.splitlines()[0]
        assert first.startswith(f"--{table} {name}: ") and first.endswith("."), first
