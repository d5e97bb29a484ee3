"""
Chapter 19. Tasks with one right answer: it follows from the source by a rule.

    python -m data.rewriting                         # print some of each

    reverse        cabbage -> egabbac     3 to 8 letters; held out: a word and its reverse
    sort           31415 -> 11345         3 to 8 digits; held out: the digits, in any order
    date           Mar 3, 2021 -> 2021-03-03    three ways to write it; held out: the day
    translit       shocin -> Sosin        two letters that are one sound, c before e and i is s;
                                          held out: the sound
    add            127+58 -> 185          up to 999; held out: two numbers, in any order
    add-reversed   127+58 -> 581          the last digit first, so that a carry is known
"""
import re
from datetime import date, timedelta

from data.seq2seq import Task
from script import one_line_errors

MONTHS = ("January February March April May June July August September October November "
          "December").split()
DIGRAPHS = {"sh": "S", "ch": "C", "th": "T"}
ONSETS = ["", *"bcdhknrst", *DIGRAPHS, "c"]


class Rule(Task):
    """A task whose answer is a function of the source. A subclass has draw_source, answer, code."""

    def question(self, rng):
        source = self.draw_source(rng)
        return source, self.code(source)

    def right_answers(self, source):
        return {self.answer(source): 1.0}

    def code(self, source):
        return self.answer(source)


class Reverse(Rule):
    """Letters in the other order."""
    name, what, vocabulary = "reverse", "3 to 8 letters, in the other order", "abcdefghij"
    source, target = 9, 9

    def draw_source(self, rng):
        return "".join(rng.choices(self.vocabulary, k=rng.randint(3, 8)))

    def answer(self, source):
        return source[::-1]

    def code(self, source):
        return min(source, source[::-1])


class Sort(Rule):
    """Digits in order."""
    name, what, vocabulary = "sort", "3 to 8 digits, the smallest first", "0123456789"
    source, target = 9, 9

    def draw_source(self, rng):
        return "".join(rng.choices(self.vocabulary, k=rng.randint(3, 8)))

    def answer(self, source):
        return "".join(sorted(source))


class Dates(Rule):
    """Days of 2000 to 2099 in one form."""
    name, what = "date", "a day of 2000 to 2099, as 2021-03-03"
    vocabulary = "".join(sorted({*"0123456789/,- ", *"".join(MONTHS)}))
    source, target = 18, 11

    def draw_source(self, rng):
        day = date(2000, 1, 1) + timedelta(days=rng.randrange(36525))
        month = MONTHS[day.month - 1]
        return rng.choice((f"{day.day} {month} {day.year}", f"{month[:3]} {day.day}, {day.year}",
                           f"{day.day:02}/{day.month:02}/{day.year % 100:02}"))

    def answer(self, source):
        if "/" in source:
            day, month, year = map(int, source.split("/"))
            return date(2000 + year, month, day).isoformat()
        first, second, year = source.replace(",", "").split()
        day, name = (first, second) if first.isdigit() else (second, first)
        month = next(i for i, known in enumerate(MONTHS, 1) if known.startswith(name))
        return date(int(year), month, int(day)).isoformat()


class Translit(Rule):
    """Words as they sound."""
    name, what = "translit", "made-up words of 2 to 4 syllables, a letter for each sound"
    vocabulary = "abcdehiknorstuSCT"
    source, target = 17, 13

    def draw_source(self, rng):
        return "".join(rng.choice(ONSETS) + rng.choice("aeiou") + rng.choice(["", "", "n"])
                       for _ in range(rng.randint(2, 4)))

    def answer(self, source):
        sounds = re.sub("|".join(DIGRAPHS), lambda found: DIGRAPHS[found[0]], source)
        return re.sub("c(?=[ei])", "s", sounds).replace("c", "k")


class Add(Rule):
    """Sums of two numbers."""
    name, what, vocabulary = "add", "the sum of two numbers up to 999", "0123456789+"
    source, target, turned = 8, 5, False

    def draw_source(self, rng):
        a, b = (rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2))
        return f"{a}+{b}"

    def answer(self, source):
        total = str(sum(map(int, source.split("+"))))
        return total[::-1] if self.turned else total

    def code(self, source):
        return sorted(map(int, source.split("+")))


class AddReversed(Add):
    """Sums whose last digit stands first."""
    name, what, turned = "add-reversed", "the sum of two numbers, the last digit first", True


def main():
    """Some sources of each task, with their answers."""
    for task in (Reverse(), Sort(), Dates(), Translit(), Add(), AddReversed()):
        print(task.about)
        for row in task.windows("val", 4).tolist():
            print(f"    {task.source_of(row):<20} -> {task.target_of(row)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
