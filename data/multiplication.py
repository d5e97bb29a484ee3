"""
Chapter 20. Multiplication of two numbers of two digits, with or without the steps in between.

    python -m data.multiplication                                # print some

    37*24=  ->  8880                multiplication: the answer, 888, its last digit first
    37*24=  ->  8410+ 0470= 8880    multiplication-thoughts: 37 * 4, 37 * 20, and their sum

Behind the question, digits stand from the last to the first, as one calculates, and all numbers
have four. Each partial product is a thought (Diffusion of Thoughts, arXiv:2402.07754, has four or
five digits). It depends on two digits of one number and one of the other, of which there are 900
cases: each was learned. The product has 8,100 cases, of which a fifth was not.

Held out are pairs of numbers, whatever their order: a * b is never learned where b * a is held out.
"""
import torch

from data.puzzles import Puzzle, side_of
from script import one_line_errors

DIGITS = 2  # of each number
WIDTH = 2 * DIGITS  # of each product
TIMES, PLUS, EQUALS = 10, 11, 12  # ids: 0 .. 9 are digits


def to_digits(number, width):
    """The digits of numbers (n,), the last one first. -> (n, width)"""
    return number[:, None] // 10 ** torch.arange(width) % 10  # (n, width)


def calculation(a, b):
    """The partial products of numbers (n,), each with the sign behind it, and the product.
    -> (n, DIGITS (WIDTH + 1) + WIDTH)"""
    parts = []
    for place, digit in enumerate(to_digits(b, DIGITS).T):  # (n,)
        last = place == DIGITS - 1
        sign = torch.full_like(a, EQUALS if last else PLUS)[:, None]  # (n, 1)
        parts += [to_digits(a * digit * 10**place, WIDTH), sign]
    return torch.cat([*parts, to_digits(a * b, WIDTH)], 1)  # (n, ..)


class Multiplication(Puzzle):
    """What the two data sets share."""
    symbols = "0123456789*+="
    prompt = 2 * DIGITS + 2
    with_thoughts = False

    def __init_subclass__(cls):
        cls.thoughts = (WIDTH + 1,) * DIGITS + (WIDTH,) if cls.with_thoughts else ()
        cls.length = cls.prompt + (sum(cls.thoughts) or WIDTH)
        cls.name = "multiplication" + "-thoughts" * cls.with_thoughts
        cls.what = f"{DIGITS} digits times {DIGITS} digits" + ", step by step" * cls.with_thoughts
        cls.defaults = dict(recipe_iters=4000, n_layer=3, n_head=4, n_embd=64, batch_size=64,
                            block_size=cls.length)

    def draw(self, n, side, generator):
        a, b = torch.randint(10 ** (DIGITS - 1), 10**DIGITS, (2, 2 * n), generator=generator)
        code = torch.minimum(a, b) * 10**DIGITS + torch.maximum(a, b)  # (2 n,)
        a, b = (number[side_of(code) == side] for number in (a, b))  # (m,) each
        sign = torch.full_like(a, TIMES)[:, None]  # (m, 1)
        first, second = (to_digits(number, DIGITS).flip(-1) for number in (a, b))  # (m, DIGITS)
        answer = calculation(a, b)[:, self.prompt - self.length:]  # (m, ..)
        x = torch.cat([first, sign, second, sign + EQUALS - TIMES, answer], 1)  # (m, L)
        frozen = torch.arange(self.length) < self.prompt  # (L,)
        return x, frozen.expand(len(x), -1)  # (m, L) each

    def right(self, x):
        power = 10 ** torch.arange(DIGITS).flip(0)  # (DIGITS,)
        a, b = (x[:, lo:lo + DIGITS] @ power for lo in (0, DIGITS + 1))  # (n,) each
        same = x[:, self.prompt:] == calculation(a, b)[:, self.prompt - self.length:]  # (n, ..)
        parts = same.split(list(self.thoughts) or WIDTH, 1)
        return torch.stack([part.all(-1) for part in parts], 1)  # (n, thoughts)


class MultiplicationAnswer(Multiplication):
    """The answer alone."""


class MultiplicationThoughts(Multiplication):
    """The partial products, and then the answer."""
    with_thoughts = True


def main():
    """Some products, step by step."""
    data = MultiplicationThoughts()
    print(data.about)
    for row in data.windows("val", 5):
        print(data.text(row.tolist()))


if __name__ == "__main__":
    with one_line_errors():
        main()
