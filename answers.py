"""
Answers to the exercises that ask for a number before you run, or for the test that sees a fault (exercises.md).

A guess costs nothing here, and is worth more than the right formula read afterwards: write it down first, then run the
grader, which measures.
"""
import math


def bound_of_a_uniform_guess(n_tokens):
    """3: the mean bound of masked diffusion, in nats per token, of a denoiser that finds all n_tokens equally likely
    everywhere. Does it depend on the text?"""
    # exercise 3: one line
    return math.log(n_tokens)
    # end


def what_sees_the_missing_weight():
    """6: somebody leaves out the weight 1/t of (2) in masked.py: the loss still falls, samples look the same. Which
    test fails? -> "tests/FILE.py::NAME", none of tests/test_exercises*.py"""
    # exercise 6: one line
    return "tests/test_theory.py::test_the_closed_forms_are_the_one_bound"
    # end


def calls_of_the_masked_sampler(length, steps):
    """10: how often, in the mean, is the network asked while `length` masks open in `steps` equal steps of (3), one
    text alone, if it is not asked in steps in which no mask opens?"""
    # exercise 10: one line
    return steps * (1 - (1 - 1 / steps) ** length)
    # end


def what_sees_the_missing_term():
    """12: somebody leaves out the term IS of uniform.py's bound, as if a wrong word had a right one's cost. Which test
    fails? -> "tests/FILE.py::NAME", none of tests/test_exercises*.py"""
    # exercise 12: one line
    return "tests/test_theory.py::test_the_closed_forms_are_the_one_bound"
    # end


def share_of_pairs_that_fit(steps):
    """15: a language has two texts, "a a" and "b b", equally likely. A sampler of masked diffusion with the *exact*
    denoiser takes so many equal steps. What share of its samples belongs to the language?"""
    # exercise 15: one line
    return 1 - 1 / (2 * steps)
    # end
