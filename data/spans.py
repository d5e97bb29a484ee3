"""
Chapter 19. GENIE's pre-training (arXiv:2212.11685): a text from which spans are missing, and the
whole text.

    python -m data.spans                             # print some

    describe-spans   the alto | and is cheap -> the alto serves thai food and is cheap

    spans     k = floor(0.3 n / w) + 1 places of the n words are drawn, with replacement. The
              word there becomes one mark, and the next w - 1 words vanish                    (19.7)

The mark is the pad, so a run has the tokens of the task, and its weights are those that the task
starts from: `--init_from`. w is 4 for texts this short; GENIE has 8. In its code a place inside
another span leaves a mark of its own, as here.

The texts are answers of the task to questions that it learns from, so what the task holds out stays
unseen. Held out here is what is left of a text. The probability of each whole text, given what is
left of it, is known: p(text) times the chance of these places, over all texts and places that leave
the same.
"""
from collections import Counter, defaultdict
from functools import cache
from itertools import product

from data.base import hash_fraction
from data.puzzles import SHARE
from data.wording import Describe, all_tables, descriptions
from script import one_line_errors

MISSING = 0.3  # of the words, about


def count_spans(n, width):
    """How many places are drawn in a text of n words."""
    return int(MISSING * n / width) + 1


def remove_spans(words, places, width, mark):
    """(19.7). words: a list -> the words that are left, with marks"""
    left = []
    for i, word in enumerate(words):
        if i in places:
            left.append(mark)
        elif not any(place < i < place + width for place in places):
            left.append(word)
    return left


def drawn_from(ways, rng):
    """One of {text: its probability}."""
    texts, chances = zip(*ways.items())
    return rng.choices(texts, chances)[0]


class DescribeSpans(Describe):
    """Answers of `describe`, with spans missing."""
    name, what = "describe-spans", "texts of describe, from texts in which spans are missing"
    source, target, width = Describe.target, Describe.target, 4
    counts_slots = False  # right answers differ in what they tell

    def question(self, rng):
        """What is left of a text that `describe` learns from."""
        table, _ = super().question(rng)
        while is_held_out(table):
            table, _ = super().question(rng)
        words = drawn_from(descriptions(table), rng).split()
        places = [rng.randrange(len(words)) for _ in range(count_spans(len(words), self.width))]
        left = " ".join(remove_spans(words, places, self.width, self.pad)).rstrip(f" {self.pad}")
        return left, left

    def source_of(self, row):
        """What is left, with marks inside; a mark at the end is as what fills it up."""
        return self.spell(row[:self.source], None).rstrip(f" {self.pad}")

    def right_answers(self, source):
        return whole_texts(self.pad, self.width).get(source, {})


def is_held_out(table):
    """Whether `describe` holds a table out."""
    return hash_fraction(f"{Describe.name} {table}") < SHARE


@cache
def drawn_patterns(n, k, width):
    """What may be left of n words by k places: {numbers of words, None for a mark: probability}."""
    found = Counter()
    for places, times in Counter(map(frozenset, product(range(n), repeat=k))).items():
        found[tuple(remove_spans(range(n), places, width, None))] += times / n ** k
    return found


@cache
def whole_texts(mark, width):
    """{what is left: {whole text: its probability given that}}"""
    joint = defaultdict(dict)
    for table, p in all_tables().items():
        for text, q in {} if is_held_out(table) else descriptions(table).items():
            words = text.split()
            patterns = drawn_patterns(len(words), count_spans(len(words), width), width)
            for pattern, share in patterns.items():
                left = " ".join(mark if i is None else words[i] for i in pattern)
                there = joint[left.rstrip(f" {mark}")]
                there[text] = there.get(text, 0.0) + p * q * share
    return {left: {text: p / sum(texts.values()) for text, p in texts.items()}
            for left, texts in joint.items()}


def main():
    """Some texts, with the number of right answers and the entropy."""
    task = DescribeSpans()
    x = task.windows("val", 6)  # (6, L)
    for row, entropy in zip(x.tolist(), task.answer_entropy(x)):
        print(f"{task.source_of(row)}\n  -> {task.target_of(row)}   "
              f"({len(task.right_answers(task.source_of(row)))} right answers, entropy "
              f"{entropy:.3f} nats)")


if __name__ == "__main__":
    with one_line_errors():
        main()
