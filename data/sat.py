"""
Chapter 20. Satisfiability: values of variables that make every clause of a formula true.

    python -m data.sat                                           # print some, and their solutions

    aBd bCE ...  ->  01101         clauses of three variables, a capital is "not"; then all values

Random 3-SAT: 4.3 clauses for each variable, all different, each of three different variables (as
many formulas are satisfiable as not when n is large). Formulas without a solution are refused; of
all solutions of one that is left, each is the answer with the same probability. So a formula of
`sat5` has about two answers, all of which count. `sat5-unique` keeps formulas with a single one.

Solutions are counted by trying all 2^n assignments. Each breaks C(n, 3) of the 8 C(n, 3) clauses,
so of m random clauses a formula has 2^n C(7 C(n, 3), m) / C(8 C(n, 3), m) solutions on average.

A formula is held out by how many assignments break 0, 1, 2, ... of its clauses. That is the same
for every order of clauses and of variables in a clause, under other names for the variables, and
where a variable and its negation change places: no such copy is ever on the other side.
"""
from functools import cache
from itertools import combinations, product

import torch

from data.puzzles import Puzzle, side_of
from script import one_line_errors


@cache
def all_assignments(n):
    """-> (2^n, n) of 0 and 1"""
    return torch.tensor(list(product(range(2), repeat=n)))  # (2^n, n)


@cache
def all_clauses(n):
    """Every clause, as literals: id v is variable v, id n + v is "not v". -> (8 C(n, 3), 3)"""
    return torch.tensor([[v + n * negated for v, negated in zip(variables, signs)]
                         for variables in combinations(range(n), 3)
                         for signs in product(range(2), repeat=3)])  # (clauses, 3)


def broken(clauses, values, n):
    """Which clauses an assignment breaks. clauses (..., 3), values (..., n) -> (...) bool"""
    shape = clauses.shape[:-1]
    values = values.expand(*shape, n).gather(-1, clauses % n)  # (..., 3)
    return (values == (clauses >= n)).all(-1)  # (...)


@cache
def broken_by(n):
    """Which clauses of `all_clauses` each assignment breaks. -> (8 C(n, 3), 2^n) int8"""
    clauses, values = all_clauses(n)[:, None], all_assignments(n)[None]  # (c, 1, 3), (1, 2^n, n)
    return broken(clauses.expand(-1, 2**n, -1), values, n).to(torch.int8)  # (c, 2^n)


def code_of(count):
    """A number for how many assignments break 0, 1, 2, ... clauses. (m, 2^n) -> (m,)"""
    return (31 ** count.long()).sum(-1)  # (m,) modulo 2^64


class Sat(Puzzle):
    """What the data sets share. n variables, m clauses."""
    n, m, most = 5, 21, None  # most: solutions at most; None: any number

    def __init_subclass__(cls):
        names = "abcdefghi"[:cls.n]
        cls.symbols = names + names.upper() + "01"
        cls.prompt = 3 * cls.m
        cls.length = cls.prompt + cls.n
        cls.name = f"sat{cls.n}" + "-unique" * (cls.most == 1)
        cls.what = (f"{cls.m} clauses of {cls.n} variables, "
                    + ("one solution" if cls.most == 1 else "one or more solutions"))
        cls.defaults = dict(recipe_iters=8000, n_layer=3, n_head=4, n_embd=64, batch_size=64,
                            block_size=cls.length)

    def formulas(self, k, generator):
        """Random formulas, and how many of their clauses each assignment breaks. -> (k, m, 3),
        (k, 2^n)"""
        every = all_clauses(self.n)  # (c, 3)
        chosen = torch.rand(k, len(every), generator=generator).topk(self.m).indices  # (k, m)
        count = broken_by(self.n)[chosen].sum(1, dtype=torch.int8)  # (k, 2^n)
        order = torch.rand(k, self.m, 3, generator=generator).argsort(-1)  # (k, m, 3)
        return every[chosen].gather(-1, order), count  # (k, m, 3), (k, 2^n)

    def draw(self, n, side, generator):
        clauses, count = self.formulas(2 * n, generator)  # (k, m, 3), (k, 2^n)
        solutions = (count == 0).sum(-1)  # (k,)
        kept = (solutions > 0) & (solutions <= (self.most or 2**self.n))  # (k,)
        kept &= side_of(code_of(count)) == side
        clauses, count = clauses[kept], count[kept]  # (m', m, 3), (m', 2^n)
        if len(count) == 0:
            return torch.zeros(0, self.length).long(), torch.zeros(0, self.length).bool()
        which = torch.multinomial((count == 0).double(), 1, generator=generator)[:, 0]  # (m',)
        values = all_assignments(self.n)[which] + 2 * self.n  # (m', n)
        x = torch.cat([clauses.flatten(1), values], 1)  # (m', L)
        frozen = torch.arange(self.length) < self.prompt  # (L,)
        return x, frozen.expand(len(x), -1)  # (m', L) each

    def clauses_of(self, x):
        """-> (n, m, 3) literals"""
        return x[:, :self.prompt].view(len(x), self.m, 3)  # (n, m, 3)

    def count_solutions(self, x):
        """How many assignments make all clauses true, by trying each. x (n, L) -> (n,)"""
        clauses, values = self.clauses_of(x)[:, None], all_assignments(self.n)[:, None]
        clauses = clauses.expand(-1, 2**self.n, -1, -1)  # (n, 2^n, m, 3)
        return (~broken(clauses, values, self.n).any(-1)).sum(-1)  # (n,)

    def solved(self, x):
        """Every clause is true: any solution counts."""
        values = x[:, self.prompt:] - 2 * self.n  # (n, variables)
        wrong = broken(self.clauses_of(x), values[:, None], self.n)  # (n, m)
        return ~wrong.any(-1) & ((values == 0) | (values == 1)).all(-1)  # (n,)


class Sat5(Sat):
    """5 variables."""


class Sat5Unique(Sat):
    """5 variables, one solution."""
    most = 1


class Sat7(Sat):
    """7 variables."""
    n, m = 7, 30


class Sat9(Sat):
    """9 variables."""
    n, m = 9, 39


def main():
    """Some formulas, an answer to each, and how many there are."""
    data = Sat5()
    print(data.about)
    x = data.windows("val", 5)  # (5, L)
    for row, solutions in zip(x, data.count_solutions(x)):
        text = data.text(row.tolist())
        clauses = " ".join(text[3 * i:3 * i + 3] for i in range(data.m))
        print(f"{clauses} -> {text[data.prompt:]}, one of {solutions} solutions")


if __name__ == "__main__":
    with one_line_errors():
        main()
