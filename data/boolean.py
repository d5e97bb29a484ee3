"""
Chapter 20. Boolean formulas: is it true or false? With or without the values of its parts.

    python -m data.boolean                                       # print some

    ((0|1)&(1^(0&1)))=   ->  1          boolean: the answer
                         ->  1011       boolean-thoughts: the value at each ")", the last one is it

8 zeros and ones, and 7 of & (and), | (or), ^ (either, not both), in brackets: two neighbors of a
row are put in brackets until one formula is left. Each bracket is a thought of one symbol, which
follows from one or two earlier thoughts or digits.

A formula is held out by a code that does not change where the sides of an operator change places,
anywhere in it: no such copy is ever on the other side.
"""
import torch

from data.puzzles import Puzzle, side_of
from script import one_line_errors

OPERATORS = {"&": int.__and__, "|": int.__or__, "^": int.__xor__}
LEAVES = 8


def read_formula(formula):
    """-> the values of its brackets, in the order in which they close, and its code."""
    stack, values = [], []  # on the stack: values with their codes, and operators
    for symbol in formula:
        if symbol == ")":
            (b, code_b), operator, (a, code_a) = stack.pop(), stack.pop(), stack.pop()
            sides = (code_a + code_b) * 0x9E3779B97F4A7C15 + code_a * code_b
            stack.append((OPERATORS[operator](a, b), (sides * 31 + ord(operator)) % 2**61))
            values.append(stack[-1][0])
        elif symbol != "(":
            stack.append((int(symbol), int(symbol) + 2) if symbol in "01" else symbol)
    return values, stack[0][1]


class Boolean(Puzzle):
    """What the two data sets share."""
    symbols = "01&|^()="
    prompt = 4 * LEAVES - 2
    with_thoughts = False

    def __init_subclass__(cls):
        cls.thoughts = (1,) * (LEAVES - 1) if cls.with_thoughts else ()
        cls.length = cls.prompt + max(1, len(cls.thoughts))
        cls.name = "boolean" + "-thoughts" * cls.with_thoughts
        cls.what = f"formulas of {LEAVES} digits" + ", bracket by bracket" * cls.with_thoughts
        cls.defaults = dict(recipe_iters=6000, n_layer=3, n_head=4, n_embd=64, batch_size=64,
                            block_size=cls.length)

    def draw(self, n, side, generator):
        rand = lambda size: torch.rand(2 * n, size, generator=generator).tolist()
        rows, codes = [], []
        for digits, operators, places in zip(rand(LEAVES), rand(LEAVES - 1), rand(LEAVES - 1)):
            parts = ["01"[digit < 0.5] for digit in digits]
            for operator, place in zip(operators, places):
                i = int(place * (len(parts) - 1))
                parts[i:i + 2] = [f"({parts[i]}{'&|^'[int(3 * operator)]}{parts[i + 1]})"]
            values, code = read_formula(parts[0])
            answer = values if self.with_thoughts else values[-1:]
            rows.append([self.symbols.index(symbol) for symbol in parts[0] + "="] + answer)
            codes.append(code)
        x = torch.tensor(rows)[side_of(torch.tensor(codes)) == side]  # (m, L)
        frozen = torch.arange(self.length) < self.prompt  # (L,)
        return x, frozen.expand(len(x), -1)  # (m, L) each

    def right(self, x):
        questions = x[:, :self.prompt - 1].tolist()
        formulas = ("".join(self.symbols[i] for i in row) for row in questions)
        values = torch.tensor([read_formula(formula)[0] for formula in formulas])  # (n, brackets)
        answer = x[:, self.prompt:]  # (n, a)
        return answer == values[:, -answer.shape[1]:]  # (n, a)


class BooleanAnswer(Boolean):
    """The answer alone."""


class BooleanThoughts(Boolean):
    """The value of every bracket."""
    with_thoughts = True


def main():
    """Some formulas, with the values of their brackets."""
    data = BooleanThoughts()
    print(data.about)
    for row in data.windows("val", 5):
        text = data.text(row.tolist())
        print(f"{text[:data.prompt]} {text[data.prompt:-1]} {text[-1]}")


if __name__ == "__main__":
    with one_line_errors():
        main()
