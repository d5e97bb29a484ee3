"""
Exercises that ask for a number before you run, or for the test that detects a fault (README.md).

Write your guess down first, then run the grader, which measures.
"""
import math


def bound_of_a_uniform_guess(n_tokens):
    """3: a denoiser predicts all n_tokens with equal probability everywhere. What is its mean bound
    under masks, in nats per token? Does it depend on the text?"""
    # exercise 3: one line
    return math.log(n_tokens)
    # end


def detector_of_missing_weight():
    """6: the weight 1/t of (0.2) for masks is left out in methods/mdlm.py. The loss still falls,
    and samples look the same. Which test fails? Not one of tests/exercises.

    -> "tests/FOLDER/FILE.py::NAME"
    """
    # exercise 6: one line
    return "tests/theory/test_theory.py::test_the_closed_forms_are_the_one_bound"
    # end


def calls_of_the_masked_sampler(length, steps):
    """10: `length` masks open in `steps` equal steps of (0.3), in one text. The network is not
    called in steps in which no mask opens. How often is it called on average?"""
    # exercise 10: one line
    return steps * (1 - (1 - 1 / steps) ** length)
    # end


def detector_of_missing_term():
    """12: the term IS of (0.2) for words is left out in methods/udlm.py, as if a wrong word cost as
    much as a right one. Which test fails? Not one of tests/exercises.

    -> "tests/FOLDER/FILE.py::NAME"
    """
    # exercise 12: one line
    return "tests/theory/test_theory.py::test_the_closed_forms_are_the_one_bound"
    # end


def share_of_matching_pairs(steps):
    """15: a language has two texts, "a a" and "b b", equally likely. Masked diffusion with the
    *exact* denoiser takes so many equal steps. What share of its samples is in the language?"""
    # exercise 15: one line
    return 1 - 1 / (2 * steps)
    # end


def bits_per_byte_of(record):
    """21: a model on a text, as published: {"nats_per_token", "bytes_per_token", "bits_per_byte",
    "tokens", "characters", "bytes"}. The counts in the last three are right, and so are the nats.
    bytes_per_token was read off the vocabulary: its mean over all tokens, the long and rare ones as
    well. Too good to be true: what are the bits per byte?"""
    # exercise 21: one line
    return record["nats_per_token"] / math.log(2) * record["tokens"] / record["bytes"]
    # end


def report_of_carry_over(ar_nats, masked_nats):
    """22: an AR model chooses among the draws of a masked model (--sampler energy --carry). Its
    authors report as the likelihood of a text the mean over t and masks of

        (1/t) sum_l [z_l = m] -log p_AR(x_l | x_<l)

    The tokens of a text cost the AR model ar_nats, and the masked model masked_nats (lists, -log p
    of each token). Which number is reported, in nats per text? Whose perplexity is it?"""
    # exercise 22: one line
    return sum(ar_nats)
    # end


def cosine_of_a_mean_field(length):
    """23: a text has `length` words of two symbols, and all logits of the network are 0. A sampler
    opens one mask after the other, in random order. The reward is 1 for a single text, else 0.
    diffu-GRPO takes for the log-probability of a text the sum over its words of what the network
    predicts from masks alone, (22.4). What is the cosine of its expected gradient with the policy
    gradient, if each state of the text (which masks are open, with which words) has logits of its
    own?"""
    # exercise 23: one line
    return sum(1 / math.comb(length - 1, k) for k in range(length)) ** -0.5
    # end


def solved_stars(arms, steps, hops):
    """24: a star of `arms` ways of `steps` steps (data/planning.py), 3 or more of each. A network
    follows at most `hops` edges in one call, forwards or backwards, from the start, the goal and
    the letters of the way that it sees. If it finds several letters for a place, they are equally
    likely; if it finds none, all letters are. Which share of stars does it solve from left to
    right, and which share if it opens the surest mask first?

    -> two numbers"""
    # exercise 24: one line
    return 1.0 if hops >= steps - 1 else 1 / arms, 1.0
    # end


def excess_of_the_flow_bound(n_words):
    """27: a text is one token, and all n_words words are equally likely. A flow goes from random
    words to text, with kappa = u. The network is exact: it outputs p(x | z), where p(z) = kappa +
    (1 - kappa)/n_words, and all other words share the rest. How many nats is the mean of its bound
    (14.22) above the entropy?"""
    # exercise 27: one line
    return (n_words - 1) / n_words * (math.log(n_words) + 1) - math.log(n_words)
    # end


def integral_of_a_bit(decoder_nats):
    """29: a text is one token, +1 or -1, equally likely, and its row is that number (D = 1). With
    the exact denoiser the first term of (13.7) costs decoder_nats at gamma_0. gamma_1 is so high
    that the KL is 0. What is the integral from gamma_0 to gamma_1, in nats?"""
    # exercise 29: one line
    return math.log(2) - decoder_nats
    # end


def lengths_of_published_ilm(law):
    """32: ILM inserts words one at a time. Published, it is trained on a text with k of its n words
    left, k uniform on 0 .. n, and each text counts once: is it complete, and if not, which word is
    missing? law[n] is the share of texts of n words. Which law of lengths do samples of the perfect
    network have, if it draws whether to stop?

    -> a list as long as law"""
    # exercise 32: two lines
    q = [p / (n + 1) for n, p in enumerate(law)]
    return [part / sum(q) for part in q]
    # end
