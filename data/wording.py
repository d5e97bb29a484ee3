"""
Chapter 19. Tasks with several right answers, drawn from small grammars whose probabilities are
known.

    python -m data.wording                           # print some of each

    paraphrase   the cat chased the dog today -> today the dog was pursued by the cat
                 voice, place of the time, synonyms; another surface than the source
    summary      ann sang bob read ann sang -> mostly ann , mostly sang
                 the most frequent actor and act, of 3 to 5 events
    describe     name alto food thai area river -> the alto serves thai food and stands by the river
                 all slots, in any order

`phrase` and `mix` build all ways to say something with their probabilities, so what is drawn, what
is accepted and the entropy are one table. Held out: what is said, however it is worded.
"""
import math
from collections import Counter
from functools import cache
from itertools import permutations, product

from data.seq2seq import Task
from script import one_line_errors


def phrase(*parts):
    """All ways to say the parts one after the other, each a str or {words: probability}.
    -> {words: probability}"""
    ways = {"": 1.0}
    for part in parts:
        part, longer = {part: 1.0} if isinstance(part, str) else part, Counter()
        for before, p in ways.items():
            for words, q in part.items():
                longer[f"{before} {words}".strip()] += p * q
        ways = longer
    return dict(ways)


def mix(*weighted):
    """One of several tables, each with its weight: (weight, {words: probability}). -> the table"""
    ways = Counter()
    for weight, table in weighted:
        for words, p in table.items():
            ways[words] += weight * p
    return dict(ways)


def words_of(*tables):
    """The words of some texts, each once, in order."""
    return tuple(dict.fromkeys(word for table in tables for text in table for word in text.split()))


class Drawn(Task):
    """A task whose answers are drawn. words: {word: the slot that it tells of}, or it has none"""
    counts_slots, words = True, {}

    def slots(self, text):
        return {self.words[word] for word in text.split() if word in self.words}


# ---- paraphrase

BEINGS = ("cat,kitty dog,hound child,kid farmer horse,steed teacher,tutor doctor,medic "
          "sailor").split()
ACTS = "chased,pursued watched,observed helped,aided pushed,shoved called,phoned stopped".split()
WHENS = ["", "today", "yesterday", "at noon,at midday"]
FIRST = 0.7  # of two synonyms


def synonyms(entry):
    """{word: probability} of an entry such as "cat,kitty"."""
    first, _, second = entry.partition(",")
    return {first: FIRST, second: 1 - FIRST} if second else {first: 1.0}


@cache
def surfaces(meaning):
    """All sentences that say (who, act, whom, when). -> {sentence: probability}"""
    who, act, whom, when = map(synonyms, meaning)
    active = phrase("the", who, act, "the", whom)
    passive = phrase("the", whom, "was", act, "by the", who)
    said = mix((0.6, active), (0.4, passive))
    return mix((0.4, phrase(when, said)), (0.6, phrase(said, when)))


class Paraphrase(Drawn):
    """Active and passive sentences with synonyms. A meaning is (who, act, whom, when)."""
    name, what = "paraphrase", "a sentence in other words"
    vocabulary = words_of(["the was by"], *map(synonyms, [*BEINGS, *ACTS, *WHENS]))
    words = {word: entry for entry in [*BEINGS, *ACTS, *WHENS] for text in synonyms(entry)
             for word in text.split() if word != "at"}
    source, target = 10, 10

    def question(self, rng):
        meaning = *(rng.choice(part) for part in (BEINGS, ACTS, BEINGS, WHENS)),
        sentences, chances = zip(*surfaces(meaning).items())
        return rng.choices(sentences, chances)[0], meaning

    def meaning_of(self, sentence):
        """(who, act, whom, when) of a sentence of the grammar."""
        found = [self.words[word] for word in sentence.split() if word in self.words]
        when = next((entry for entry in found if entry in WHENS), "")
        first, act, second = (entry for entry in found if entry not in WHENS)
        return (second, act, first, when) if " by " in sentence else (first, act, second, when)

    def right_answers(self, source):
        """All other sentences that say the same: p(s) / (1 - p(source))."""
        ways = surfaces(self.meaning_of(source))
        rest = 1 - ways[source]
        return {sentence: p / rest for sentence, p in ways.items() if sentence != source}


# ---- summary

ACTORS = "ann bob cid dora ed flo".split()
DEEDS = "sang read ran cooked wrote slept".split()


class Summary(Drawn):
    """Who is named most often, and what is done most often."""
    name, what = "summary", "the most frequent actor and act of 3 to 5 events"
    vocabulary = words_of(ACTORS, DEEDS, ["mostly chiefly often above all it was and ,"])
    words = {word: word for word in [*ACTORS, *DEEDS]}
    source, target = 11, 6

    def question(self, rng):
        """Events (actor, act), until one actor and one act are the most frequent."""
        while True:
            likely, n = (rng.choice(ACTORS), rng.choice(DEEDS)), rng.randint(3, 5)
            events = [tuple(main if rng.random() < 0.5 else rng.choice(words)
                            for main, words in zip(likely, (ACTORS, DEEDS))) for _ in range(n)]
            if None not in map(most_frequent, zip(*events)):
                return " ".join(map(" ".join, events)), sorted(events)

    def right_answers(self, source):
        told = source.split()
        return wordings(most_frequent(told[::2]), most_frequent(told[1::2]))


@cache
def wordings(actor, act):
    """All ways to name both. -> {words: probability}"""
    adverb = {"mostly": 0.6, "chiefly": 0.4}
    return mix((0.4, phrase(adverb, actor, ",", adverb, act)), (0.3, phrase("often", actor, act)),
               (0.2, phrase("it was", actor, "and", act)),
               (0.1, phrase("above all", act, "and", actor)))


def most_frequent(words):
    """The word that occurs more often than any other, or None."""
    (first, n), *rest = Counter(words).most_common(2)
    return None if rest and rest[0][1] == n else first


# ---- describe

SLOTS = {  # slot: its values; all but the first may be missing
    "name": "alto bell cedar delta ember fox grove haven".split(),
    "food": "thai french greek indian".split(),
    "area": "river park station harbor".split(),
    "price": "low high".split(),
}
CLAUSES = {
    "food": lambda food: {f"serves {food} food": 0.6, f"has {food} dishes": 0.4},
    "area": lambda area: {f"stands by the {area}": 0.5, f"is near the {area}": 0.5},
    "price": lambda price: {"low": {"is cheap": 0.8, "costs little": 0.2},
                            "high": {"is dear": 0.3, "costs much": 0.7}}[price],
}


def all_tables():
    """{table: its probability}"""
    tables = {}
    for kept in range(1, 8):  # as bits
        slots = ["name", *(slot for i, slot in enumerate(CLAUSES) if kept >> i & 1)]
        for values in product(*(SLOTS[slot] for slot in slots)):
            table = " ".join(map(" ".join, zip(slots, values)))
            tables[table] = 1 / 7 / math.prod(len(SLOTS[slot]) for slot in slots)
    return tables


class Describe(Drawn):
    """A place from a table of what it has (the shape of E2E, arXiv:1706.09254)."""
    name, what = "describe", "a sentence that tells all slots of a table"
    words = {value: value for values in SLOTS.values() for value in values}
    words |= {"cheap": "low", "little": "low", "dear": "high", "much": "high"}
    vocabulary = words_of(SLOTS, *SLOTS.values(), *(
        CLAUSES[slot](SLOTS[slot][i]) for slot in CLAUSES for i in (0, 1)), ["the , and"])
    source, target = 9, 14

    def question(self, rng):
        """A name and at least one other slot, any of the 7 subsets of the three."""
        kept = rng.randint(1, 7)  # as bits
        slots = ["name", *(slot for i, slot in enumerate(CLAUSES) if kept >> i & 1)]
        table = " ".join(f"{slot} {rng.choice(SLOTS[slot])}" for slot in slots)
        return table, table

    def right_answers(self, source):
        return descriptions(source)


@cache
def descriptions(source):
    """All sentences that tell a table such as "name alto food thai". -> {sentence: probability}"""
    words = source.split()
    table = dict(zip(words[2::2], words[3::2]))
    joints = {1: [], 2: ["and"], 3: [",", "and"]}[len(table)]
    orders, ways = list(permutations(table)), []
    for order in orders:
        clauses = [CLAUSES[slot](table[slot]) for slot in order]
        rest = [part for pair in zip(joints, clauses[1:]) for part in pair]
        ways.append((1 / len(orders), phrase("the", words[1], clauses[0], *rest)))
    return mix(*ways)


def main():
    """Some sources of each task, with an answer, its probability, and the entropy."""
    for task in (Paraphrase(), Summary(), Describe()):
        x = task.windows("val", 4)  # (4, L)
        print(task.about)
        for row, entropy in zip(x.tolist(), task.answer_entropy(x)):
            print(f"    {task.source_of(row)}\n      -> {task.target_of(row)}   "
                  f"(p {task.chance(row):.3f}, entropy {entropy:.3f} nats)")


if __name__ == "__main__":
    with one_line_errors():
        main()
