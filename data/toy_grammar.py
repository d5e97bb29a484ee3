"""
Chapter 1. The tables of the toy language: its topics, its words and its grammar.

data/toy.py computes with them. Edit them, and all that it computes is exact for your language.
"""
from functools import cache
from itertools import product

# p(topic). The topics differ in weight, so that a forgotten prior shows.
TOPICS = {"farm": .4, "sea": .3, "kitchen": .2, "school": .1}

# p(number) of a new noun
NUMBERS = {"sg": .6, "pl": .4}

# The weight of a word outside its home topic, where its weight is 1. No single word reveals the
# topic.
STRAY = .1

# The share of words that are replaced by a random word. So no text is impossible: every text has a
# log-probability, and contradictory evidence has a posterior.
TYPO = 1e-4

# role -> home topic -> words, as singular/plural where they differ. The r-th word has weight 1/r.
LEXICON = {
    "det":     {"any": "the my this/these one/two every/many"},
    "quality": {"any": "old small big", "farm": "muddy", "sea": "wet", "kitchen": "warm",
                "school": "new"},
    "mood":    {"any": "happy quiet", "farm": "busy", "sea": "brave", "kitchen": "hungry",
                "school": "clever"},
    "color":   {"any": "red white", "farm": "brown", "sea": "blue", "kitchen": "yellow",
                "school": "green"},
    "being":   {"any": "dog/dogs cat/cats child/children", "farm": "farmer/farmers horse/horses",
                "sea": "sailor/sailors gull/gulls", "kitchen": "cook/cooks mouse/mice",
                "school": "teacher/teachers rabbit/rabbits"},
    "animal":  {"any": "dog/dogs cat/cats", "farm": "horse/horses", "sea": "gull/gulls",
                "kitchen": "mouse/mice", "school": "rabbit/rabbits"},
    "thing":   {"any": "ball/balls box/boxes", "farm": "cart/carts egg/eggs",
                "sea": "boat/boats shell/shells", "kitchen": "cake/cakes plate/plates",
                "school": "book/books picture/pictures"},
    "sees":    {"any": "sees/see finds/find chases/chase", "farm": "pulls/pull",
                "sea": "catches/catch", "kitchen": "washes/wash", "school": "draws/draw"},
    "sleeps":  {"any": "sleeps/sleep waits/wait", "farm": "works/work", "sea": "swims/swim",
                "kitchen": "eats/eat", "school": "plays/play"},
    "near":    {"any": "in near behind"},
    "the":     {"any": "the my"},
    "place":   {"any": "garden house", "farm": "barn field", "sea": "harbour cave",
                "kitchen": "kitchen pantry", "school": "school park"},
    "today":   {"any": "today again alone"},
    "that":    {"any": "that"},
    "stop":    {"any": "."},
}

# The name of a place in the grammar: phrase, role, and the numbers that it remembers, with that of
# its own word last. A line with n or m stands for one line per number. A letter that is new on the
# right is drawn there. n is the number of the subject: it reaches the main verb through a clause
# such as "that chases two cats". The weights of a line need not sum to 1.
GRAMMAR = """
sentence stop        -> subject det n 8 | subject quality pl 1 | subject being pl 1
subject  det n       -> subject quality n 3 | subject mood n 2 | subject being n 5
subject  quality n   -> subject mood n 2 | subject being n 8
subject  mood n      -> subject being n 1
subject  being n     -> main sees n 5 | main sleeps n 3 | clause that n 3 | aside near n 1
clause   that n      -> clause sees n 3 | clause sleeps n 1
clause   sees n      -> clause det n m 1
clause   det n m     -> clause animal n m 3 | clause quality n m 1
clause   quality n m -> clause animal n m 1
clause   animal n m  -> main sees n 1 | main sleeps n 1
clause   sleeps n    -> main sees n 1
aside    near n      -> aside the n 1
aside    the n       -> aside place n 1
aside    place n     -> main sees n 1 | main sleeps n 1
main     sees n      -> object det m 1
object   det m       -> object quality m 3 | object color m 2 | object thing m 4 | object animal m 2
object   quality m   -> object color m 2 | object thing m 4 | object animal m 2
object   color m     -> object thing m 1
object   thing m     -> sentence stop 5 | where near 2 | sentence today 1
object   animal m    -> sentence stop 5 | where near 2 | sentence today 1
main     sleeps n    -> sentence stop 3 | where near 5 | sentence today 2
where    near        -> where the 1
where    the         -> where place 4 | where quality 1
where    quality     -> where place 1
where    place       -> sentence stop 1
sentence today       -> sentence stop 1
"""


def transition_probs(grammar):
    """{place: {next place: probability}}: each line of the grammar, written out for every n and
    m."""
    def fill_in(name, **number):
        return " ".join(number.get(part, part) for part in name)

    table = {}
    for line, n, m in product(grammar.strip().splitlines(), NUMBERS, NUMBERS):
        left, right = line.split("->")
        row = table.setdefault(fill_in(left.split(), n=n, m=m), {})
        for option in right.split("|"):
            *name, weight = option.split()
            target = fill_in(name, n=n, m=m)
            row[target] = row.get(target, 0) + float(weight) * NUMBERS[n] * NUMBERS[m]
    return {place: {to: w / sum(row.values()) for to, w in row.items()}
            for place, row in table.items()}


def vocabulary():
    """Every form of every word, in the order of the lexicon."""
    entries = (entry for homes in LEXICON.values() for words in homes.values()
               for entry in words.split())
    return list(dict.fromkeys(word for entry in entries for word in entry.split("/")))


def word_probs(place, topic):
    """{word: probability} at a place in the grammar under a topic, without typos."""
    role, form = place.split()[1], -1 if place.endswith("pl") else 0
    weight = {}
    for home, words in LEXICON[role].items():
        for rank, entry in enumerate(words.split(), 1):
            weight[entry.split("/")[form]] = (1 if home in ("any", topic) else STRAY) / rank
    return {word: w / sum(weight.values()) for word, w in weight.items()}


@cache
def automaton():
    """The grammar without typos as an automaton that reads words: row h, column v is the state
    after word v in state h, or -1 where it does not fit. A text begins in state 0, as after a stop.

    A state is the set of all places where the last word may stand: of "the", which is both, a
    singular and a plural one. So a text is read in one way only.
    """
    table, words, any_topic = transition_probs(GRAMMAR), vocabulary(), next(iter(TOPICS))
    fits = {place: set(word_probs(place, any_topic)) for place in table}
    first = frozenset(["sentence stop"])
    numbers, waiting, rows = {first: 0}, [first], []
    while waiting:
        places = waiting.pop(0)
        row = []
        for word in words:
            after = frozenset(to for place in places for to in table[place] if word in fits[to])
            if after and after not in numbers:
                numbers[after] = len(numbers)
                waiting.append(after)
            row.append(numbers[after] if after else -1)
        rows.append(row)
    return rows
