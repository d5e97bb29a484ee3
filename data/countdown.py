"""
Chapter 20. Countdown: reach a number with other numbers, each used once, and + - * /.

    python -m data.countdown                                     # print some, with their answers

    03 07 05 26   ->   03*07=21 21+05=26      without spaces and '='

Three, four or five numbers and the target, two digits each; the answer has an equation less than
there are numbers. All results are whole, from 1 to 99. A puzzle is held out by a hash of its sorted
numbers and its target. The order of the numbers is all that may differ between puzzles which are
the same. Any right answer counts; `all_answers` finds all of them.
"""
from itertools import permutations

import torch

from data.puzzles import Puzzle, side_of
from script import one_line_errors

OPERATORS = "+-*/"
PLUS = 10  # ids: 0 .. 9 are digits, then the operators


def apply(operator, a, b):
    """a + b, a - b, a * b, a / b; 0 where that is not a whole number from 1 to 99. (n,) -> (n,)"""
    whole = (b > 0) & (a % b.clamp(min=1) == 0)  # (n,)
    results = torch.stack([a + b, a - b, a * b, torch.where(whole, a // b.clamp(min=1), 0)])
    result = results.gather(0, operator[None])[0]  # (n,)
    return torch.where((result >= 1) & (result <= 99), result, 0)  # (n,)


def two_digits(a):
    """(n,) -> (n, 2)"""
    return torch.stack([a // 10, a % 10], -1)  # (n, 2)


def number(tokens):
    """Two tokens as a number, 0 where they are no digits. (n, 2) -> (n,)"""
    digits = (tokens < 10).all(-1)  # (n,)
    return torch.where(digits, 10 * tokens[:, 0] + tokens[:, 1], 0)  # (n,)


def all_answers(numbers, target):
    """All answers to a puzzle, as texts. -> set"""
    def steps(left):
        if len(left) == 1:
            return {""} if left[0] == target else set()
        found = set()
        for i, j in permutations(range(len(left)), 2):
            rest = [left[k] for k in range(len(left)) if k not in (i, j)]
            a, b = torch.tensor([left[i]]), torch.tensor([left[j]])  # (1,) each
            for o, operator in enumerate(OPERATORS):
                if result := int(apply(torch.tensor([o]), a, b)):
                    equation = f"{left[i]:02}{operator}{left[j]:02}{result:02}"
                    found |= {equation + more for more in steps([*rest, result])}
        return found
    return steps(list(numbers))


class Countdown(Puzzle):
    """What the three data sets share. k numbers up to `top`."""
    k, top = 3, 9
    symbols = "0123456789" + OPERATORS

    def __init_subclass__(cls):
        cls.prompt = 2 * (cls.k + 1)
        cls.length = cls.prompt + 7 * (cls.k - 1)
        cls.name = f"countdown{cls.k}"
        cls.what = f"{cls.k} numbers from 1 to {cls.top}, and a target"
        cls.defaults = dict(recipe_iters=6000, n_layer=3, n_head=4, n_embd=64, batch_size=64,
                            learned_places=True, block_size=cls.length)

    def draw(self, n, side, generator):
        def below(high):
            return (torch.rand(3 * n, generator=generator) * high).long()  # (3 n,)
        start = torch.stack([below(self.top) + 1 for _ in range(self.k)], 1)  # (m, k)
        left, parts, right = start, [], torch.ones(3 * n, dtype=torch.bool)  # (m, k), .., (m,)
        for size in range(self.k, 1, -1):
            order = torch.rand(3 * n, size, generator=generator).argsort(-1)  # (m, size)
            left = left.gather(1, order)  # (m, size)
            a, b, operator = left[:, 0], left[:, 1], below(4)  # (m,) each
            result = apply(operator, a, b)  # (m,)
            right &= result > 0
            parts += [two_digits(a), PLUS + operator[:, None], two_digits(b), two_digits(result)]
            left = torch.cat([left[:, 2:], result[:, None]], 1)  # (m, size - 1)
        code = start.sort(-1).values @ (100 ** torch.arange(1, self.k + 1)) + left[:, 0]  # (m,)
        right &= side_of(code) == side
        prompt = [two_digits(start[:, i]) for i in range(self.k)] + [two_digits(left[:, 0])]
        x = torch.cat([*prompt, *parts], 1)[right]  # (m', L)
        frozen = torch.arange(self.length) < self.prompt  # (L,)
        return x, frozen.expand(len(x), -1)  # (m', L) each

    def solved(self, x):
        """Each equation is true and uses numbers that are left, and the last gives the target."""
        numbers = [number(x[:, 2 * i:2 * i + 2]) for i in range(self.k + 1)]  # (n,) each
        *given, target = numbers
        left = torch.stack([(torch.stack(given) == v).sum(0) for v in range(100)], 1)  # (n, 100)
        right, row = torch.ones(len(x), dtype=torch.bool), torch.arange(len(x))  # (n,), (n,)
        for equation in x[:, self.prompt:].split(7, 1):  # (n, 7)
            a, b, result = (number(equation[:, i:i + 2]) for i in (0, 3, 5))  # (n,) each
            operator = equation[:, 2] - PLUS  # (n,)
            right &= (operator >= 0) & (operator < 4) & (result > 0)
            right &= apply(operator.clamp(0, 3), a, b) == result
            for used in (a, b):
                right &= left[row, used] > 0
                left[row, used] -= 1
            left[row, result] += 1
        return right & (result == target)  # (n,)


class Countdown3(Countdown):
    """Three numbers, two equations."""


class Countdown4(Countdown):
    """Four numbers, three equations."""
    k, top = 4, 20


class Countdown5(Countdown):
    """Five numbers, four equations."""
    k, top = 5, 20


def main():
    """Some puzzles, an answer to each, and how many answers there are."""
    data = Countdown3()
    print(data.about)
    for row in data.windows("val", 5):
        text = data.text(row.tolist())
        given = [int(text[2 * i:2 * i + 2]) for i in range(4)]
        print(f"{text[:8]} -> {text[8:]}, one of {len(all_answers(given[:3], given[3]))} answers")


if __name__ == "__main__":
    with one_line_errors():
        main()
