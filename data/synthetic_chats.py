"""
Some thousands of short chats about a village that does not exist, made from the tables below.

    for kind, key, messages in make_chats(): ...        # messages = [question, answer, ...]

    greetings     who you are, who it is
    village       who lives where, does what, ...
    yes or no     Does Ada live in the mill?
    two facts     Where does the baker live?
    unknown       people whom nobody in the village knows
    opposites     What is the opposite of hot?
    backwards     Spell s u n backwards.
    say           Say red goat again.
    follow-up     And Ben?  Say that again.  What is my name?
    sums, counting

`key` says what a chat is about, so that data/chat.py can hold out things and not only wordings: a
sum that is held out is never seen in any wording or order, nor is a word to spell. A fact cannot be
guessed, so there the question is held out, and other questions teach the fact. A key of "" is never
held out, since no other question teaches its answer. All random choices are those of
`Random(SEED)`: the chats are the same on every machine.
"""
from random import Random

from data.base import HELD_OUT, hash_fraction
from script import one_line_errors

SEED = 5
VILLAGERS = ("Ada Ben Cora Dan Elsa Finn Greta Hugo Ida Jon Kira Leo Mona Nils Olga "
             "Paul").split()  # she, he, she, he, ...
FACTS = {                                        # one per villager
    "place": "mill tower inn school barn castle chapel shop lighthouse cave cellar library harbour "
             "garden tent bakery",
    "job": "baker miller smith teacher doctor painter sailor farmer singer hunter weaver potter "
           "gardener judge cook clockmaker",
    "food": "plums bread soup honey pears cheese nuts grapes beans cherries rice fish cake apples "
            "carrots tea",
    "animal": "goat cat dog horse hen duck sheep cow rabbit pig pony frog hedgehog raven turtle "
              "mouse",
    "color": "red blue green yellow white black brown grey " * 2,
}
FACTS = {name: words.split() for name, words in FACTS.items()}
TELL = {                                         # an answer that states a fact about n
    "place": "{n} lives in the {v}.", "job": "{n} is the {v}.", "food": "{n} likes {v}.",
    "animal": "{n} has a {v}.", "color": "The door of {n} is {v}.",
}
ASK = {                                          # questions by name
    "place": ["Where does {n} live?", "Where is the home of {n}?", "Tell me where {n} lives."],
    "job": ["What does {n} do?", "What is the job of {n}?", "Tell me what {n} does."],
    "food": ["What does {n} like?", "What can I bring {n}?", "Tell me what {n} likes."],
    "animal": ["Which animal does {n} have?", "What animal lives with {n}?",
               "Tell me which animal {n} has."],
    "color": ["What colour is the door of {n}?", "Which door does {n} have?",
              "Tell me about the door of {n}."],
}
WHO = {                                          # questions by fact
    "place": ["Who lives in the {v}?", "Whose home is the {v}?", "Tell me who lives in the {v}."],
    "job": ["Who is the {v}?", "Do you know the {v}?", "Tell me who the {v} is."],
    "food": ["Who likes {v}?", "Who would like some {v}?", "Tell me who likes {v}."],
    "animal": ["Who has a {v}?", "Whose animal is the {v}?", "Tell me who has a {v}."],
}
IS_IT = {
    "place": "Does {n} live in the {v}?", "job": "Is {n} the {v}?", "food": "Does {n} like {v}?",
    "animal": "Does {n} have a {v}?", "color": "Is the door of {n} {v}?",
}
AFTER = {
    "place": "Where does {n} live?", "job": "What does {n} do?", "food": "What does {n} like?",
    "animal": "Which animal does {n} have?",
}
LIKED = FACTS["food"] + "music books games rain snow stars flowers songs".split()
STRANGERS = """Adam Alice Amy Anna Anton Bella Bill Bob Carl Chloe Clara David Diana Emil Emma Eric
Eva Fred Gina Hanna Harry Helen Henry Iris Ivan Jack James Jane Jill Julia Karl Kate Lars Laura Lily
Lisa Lucy Mark Martin Mary Max Mia Mike Nina Noah Nora Oliver Oscar Peter Rita Robert Rosa Sam Sara
Simon Sofia Susan Theo Tina Tom Vera Viktor Walter Zoe""".split()
GREETINGS = {
    "Hello!": "Hello!", "Hello.": "Hello!", "Hi!": "Hello!", "Hi.": "Hello!", "Hey!": "Hello!",
    "Good morning!": "Good morning!", "Good evening!": "Good evening!",
    "How are you?": "I am well, thank you.",
    "Who are you?": "I am Pal, a small diffusion model.",
    "What are you?": "I am Pal, a small diffusion model.",
    "What is your name?": "My name is Pal.", "Tell me your name.": "My name is Pal.",
    "Where do you live?": "I live in your computer.",
    "What can you do?": "Ask me about the village, or for a sum.",
    "Thank you.": "You are welcome.", "Thank you!": "You are welcome.",
    "Goodbye!": "Goodbye!", "Bye!": "Goodbye!",
}
OPPOSITES = """hot cold, big small, old new, up down, left right, day night, open shut, wet dry,
fast slow, long short, light dark, loud quiet, hard soft, full empty, high low, near far, rich poor,
young aged, happy sad, strong weak, clean dirty, thick thin, early late, wide narrow, sweet sour,
deep shallow, brave timid, true false, first last, inside outside, always never, begin end"""
OPPOSITES = [pair.split() for pair in OPPOSITES.split(",")]


# ---- single questions: generators of kind, [key,] question, answer

def village():
    """Questions about the facts, by name and by fact."""
    for fact, values in FACTS.items():
        for n, v in zip(VILLAGERS, values):
            said = TELL[fact].format(n=n, v=v)
            for question in ASK[fact] + WHO.get(fact, []):
                yield "village", question.format(n=n, v=v), said
    for color in FACTS["color"][:8]:
        one, other = [n for n, c in zip(VILLAGERS, FACTS["color"]) if c == color]
        for question in (f"Who has a {color} door?", f"Whose door is {color}?",
                         f"Tell me whose door is {color}."):
            yield "village", question, f"The doors of {one} and {other} are {color}."


def yes_or_no(random):
    """Each fact, and three wrong ones."""
    for fact, values in FACTS.items():
        for n, right in zip(VILLAGERS, values):
            wrong = random.sample(sorted(set(values) - {right}), 3)
            for v in [right, *wrong]:
                answer = "Yes, " if v == right else "No, "
                told = TELL[fact].format(n=n, v=right).replace("The door", "the door")
                yield "yes or no", IS_IT[fact].format(n=n, v=v), answer + told


def two_facts():
    """The question names a villager by one fact and asks for another; the answer states both."""
    for i, (n, job) in enumerate(zip(VILLAGERS, FACTS["job"])):
        for fact in ("place", "food", "animal", "color"):
            for question in ASK[fact]:
                told = TELL[fact].format(n=n, v=FACTS[fact][i])
                yield "two facts", question.format(n=f"the {job}"), f"The {job} is {n}. {told}"


def strangers():
    for n in STRANGERS:
        for question in ("Where does {} live?", "What does {} do?", "What does {} like?",
                         "Who is {}?"):
            yield "unknown", question.format(n), f"I do not know {n}."


def greetings():
    for n in STRANGERS:
        for question in ("Hello, I am {}.", "Hi, I am {}.", "My name is {}.",
                         "Hello, my name is {}.", "I am {}."):
            yield "greetings", question.format(n), f"Hello {n}!"
    for thing in LIKED:
        yield "greetings", f"I like {thing}.", f"So you like {thing}."
    for animal in FACTS["animal"]:
        yield "greetings", f"I have a {animal}.", f"A {animal} is good to have."


def sums():
    """3 plus 4 and 4 plus 3 have the same key."""
    for a in range(11):
        for b in range(11):
            key = f"{min(a, b)} plus {max(a, b)}"
            for question in (f"What is {a} plus {b}?", f"{a} plus {b}?", f"What is {a} + {b}?"):
                yield "sums", key, question, f"{a} plus {b} is {a + b}."
            if a >= b:
                for question in (f"What is {a} minus {b}?", f"{a} minus {b}?",
                                 f"What is {a} - {b}?"):
                    yield "sums", f"{a} minus {b}", question, f"{a} minus {b} is {a - b}."


def counting():
    for a in range(21):
        for b in range(a + 2, min(a + 7, 21)):
            up = [str(n) for n in range(a, b + 1)]
            yield "counting", f"up {a} {b}", f"Count from {a} to {b}.", " ".join(up)
            yield "counting", f"down {b} {a}", f"Count down from {b} to {a}.", " ".join(up[::-1])
        for question in ("What comes after {}?", "Which number comes after {}?"):
            yield "counting", f"after {a}", question.format(a), f"After {a} comes {a + 1}."
        for question in ("What comes before {}?", "Which number comes before {}?"):
            answer = f"Before {a + 1} comes {a}."
            yield "counting", f"before {a + 1}", question.format(a + 1), answer


def opposites():
    for pair in OPPOSITES:
        for word, other in (pair, pair[::-1]):
            for question in ("What is the opposite of {}?", "Tell me the opposite of {}.",
                             "The opposite of {}?"):
                yield "opposites", question.format(word), f"The opposite of {word} is {other}."


def backwards(random, n=600):
    for i in range(n):
        letters = random.choices("abcdefghijklmnopqrstuvwxyz", k=2 + i % 4)
        word = " ".join(letters)
        question = random.choice(["Spell {} backwards.", "Turn {} around."])
        yield "backwards", f"letters {word}", question.format(word), " ".join(letters[::-1])


def say(random, n=600):
    values = {v for values in FACTS.values() for v in values}
    words = sorted({word for pair in OPPOSITES for word in pair} | values)
    for i in range(n):
        phrase = " ".join(random.sample(words, 1 + i % 4))
        question = random.choice(["Say {} again.", "Say {}.", "Repeat {}."])
        yield "say", f"phrase {phrase}", question.format(phrase), phrase


# ---- chats of several questions

def follow_ups(random, singles):
    """Chats whose last question means nothing without what was said before. -> messages"""
    yield from name_chats(random, singles)
    for thing in LIKED:
        yield [f"I like {thing}.", f"So you like {thing}.", "What do I like?", f"You like {thing}."]
    for animal in FACTS["animal"]:
        yield [f"I have a {animal}.", f"A {animal} is good to have.", "Which animal do I have?",
               f"You have a {animal}."]
    yield from fact_chats(random)
    for _, _, question, answer in random.sample([s for s in singles if len(s[3].split()) < 7], 150):
        yield [question, answer, "Say that again.", answer]


def name_chats(random, singles):
    """A name, and later the question for it: at once, or behind another question."""
    facts = [(question, answer) for kind, _, question, answer in singles if kind == "village"]
    held_out = lambda question: hash_fraction(question) < HELD_OUT  # its own key

    def draw_fact(opening):
        """A question on the same side of the split as the chat that it joins, and its answer."""
        i = random.randrange(len(facts))
        return next(fact for fact in facts[i:] + facts if held_out(fact[0]) == held_out(opening))

    for n in STRANGERS:
        for opening in ("My name is {}.", "Hello, I am {}."):
            first = [opening.format(n), f"Hello {n}!"]
            yield [*first, "What is my name?", f"Your name is {n}."]
            yield [*first, *draw_fact(first[0]), "What is my name?", f"Your name is {n}."]


def fact_chats(random):
    """A question about a villager, then "And Ben?", or a question about her or him."""
    tell = lambda fact, i: TELL[fact].format(n=VILLAGERS[i], v=FACTS[fact][i])
    for i in range(len(VILLAGERS)):
        for fact, question in AFTER.items():
            first = [question.format(n=VILLAGERS[i]), tell(fact, i)]
            for j in random.sample([j for j in range(len(VILLAGERS)) if j != i], 4):
                yield [*first, f"And {VILLAGERS[j]}?", tell(fact, j)]
            for other in random.sample([f for f in AFTER if f != fact], 2):
                pronoun = "he" if i % 2 else "she"
                yield [*first, AFTER[other].format(n=pronoun), tell(other, i)]


def make_chats():
    """All chats -> [(kind, key, messages)]; the key is that of the first question."""
    random = Random(SEED)
    plain = [*village(), *yes_or_no(random), *two_facts(), *strangers(), *greetings(),
             *opposites()]
    singles = [(kind, question, question, answer) for kind, question, answer in plain]
    singles += [("greetings", "", question, answer) for question, answer in GREETINGS.items()]
    singles += [*sums(), *counting(), *backwards(random), *say(random)]
    key_of = {question: key for _, key, question, _ in singles}
    made = [(kind, key, [question, answer]) for kind, key, question, answer in singles]
    return made + [("follow-up", key_of.get(messages[0], messages[0]), messages)
                   for messages in follow_ups(random, singles)]


if __name__ == "__main__":
    with one_line_errors():
        for kind, _, messages in Random(0).sample(make_chats(), 20):
            print(f"{kind:12s}" + "   ".join(messages))
