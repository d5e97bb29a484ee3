"""
A small English whose every probability is known: the toy language, where the truth can be looked up.

    python -m data.toy            # read some of it; its exact entropy

A text has one topic (farm, sea, ...), which makes some words likely, and follows one grammar, which says what kind of
word comes next and remembers number: "the dog that chases two cats sleeps ." That is a hidden Markov model. With k
the topic, h_l the hidden place in the grammar at word l, and x the first L words of an endless text,

    p(x) = sum_k p(k) sum_h prod_l T(h_l | h_l-1) p_k(x_l | h_l)                                                  (1)

A noisy text is evidence: e_l(v) = p(z_l | x_l = v), up to a factor. One-hot is a known word, flat is a mask. Two
sweeps of L small matrix products, one from either side, replace the sum over all texts (~ is "in proportion to"):

    evidence   e_l(h) = sum_v p_k(v | h) e_l(v)
    forward    f_l(h) = p(h_l = h | k, evidence before l),       f_l+1 ~ (f_l e_l) @ T                            (2)
    backward   g_l(h) ~ p(evidence after l | k, h_l = h),        g_l-1 ~ T @ (g_l e_l)                            (3)
    posterior  p(x_l = v | evidence but l's own) = sum_k w_l(k) sum_h q_l(h) p_k(v | h),                          (4)
               q_l ~ f_l g_l,   w_l(k) = p(k | evidence but l's own)
    entropy    H(x) = H(x, h, k) - H(h, k | x)                                                                    (5)

(4) is the Bayes-optimal denoiser of every forward process. Under uniform noise a perfect network learns this
leave-one-out law and not p(x_l | z); under masks the two are one. Letters: n texts, L words, V vocabulary, K topics,
Q places. All is float64 on the CPU (Apple's GPUs have none). The noise is in diffusion.py; nothing here is learnt.
"""
from functools import cached_property
from itertools import product

import torch

from data import tokenizer

# --- the language: edit these tables, and all that follows is exact for yours ---

TOPICS = {"farm": .4, "sea": .3, "kitchen": .2, "school": .1}    # unequal, so that a forgotten prior shows
NUMBERS = {"sg": .6, "pl": .4}    # how often something new is one, or many
STRAY = .1    # a word of another topic has this weight, at home 1: no single word gives the topic away for certain
TYPO = 1e-4   # this share of all words is replaced by a word drawn at random. So no text is impossible: whatever a
#               sampler writes has a log-probability, and evidence that contradicts itself still has a posterior.

# role -> home topic -> words, the commonest first (the r-th has weight 1/r), as singular/plural where they differ
LEXICON = {
    "det":     {"any": "the my this/these one/two every/many"},
    "quality": {"any": "old small big", "farm": "muddy", "sea": "wet", "kitchen": "warm", "school": "new"},
    "mood":    {"any": "happy quiet", "farm": "busy", "sea": "brave", "kitchen": "hungry", "school": "clever"},
    "colour":  {"any": "red white", "farm": "brown", "sea": "blue", "kitchen": "yellow", "school": "green"},
    "being":   {"any": "dog/dogs cat/cats child/children", "farm": "farmer/farmers horse/horses",
                "sea": "sailor/sailors gull/gulls", "kitchen": "cook/cooks mouse/mice",
                "school": "teacher/teachers rabbit/rabbits"},
    "animal":  {"any": "dog/dogs cat/cats", "farm": "horse/horses", "sea": "gull/gulls", "kitchen": "mouse/mice",
                "school": "rabbit/rabbits"},
    "thing":   {"any": "ball/balls box/boxes", "farm": "cart/carts egg/eggs", "sea": "boat/boats shell/shells",
                "kitchen": "cake/cakes plate/plates", "school": "book/books picture/pictures"},
    "sees":    {"any": "sees/see finds/find chases/chase", "farm": "pulls/pull", "sea": "catches/catch",
                "kitchen": "washes/wash", "school": "draws/draw"},
    "sleeps":  {"any": "sleeps/sleep waits/wait", "farm": "works/work", "sea": "swims/swim",
                "kitchen": "eats/eat", "school": "plays/play"},
    "near":    {"any": "in near behind"},
    "the":     {"any": "the my"},
    "place":   {"any": "garden house", "farm": "barn field", "sea": "harbour cave", "kitchen": "kitchen pantry",
                "school": "school park"},
    "today":   {"any": "today again alone"},
    "that":    {"any": "that"},
    "stop":    {"any": "."},
}

# A place in the grammar is called: phrase, role, and the numbers that it remembers, its own word's last. A line with
# n or m stands for one line per number; a letter that is new on the right is drawn there. n is the subject's number,
# and travels through "that chases two cats" to the main verb. The weights of a line need not sum to 1.
GRAMMAR = """
sentence stop         ->  subject det n 8      |  subject quality pl 1  |  subject being pl 1
subject  det n        ->  subject quality n 3  |  subject mood n 2      |  subject being n 5
subject  quality n    ->  subject mood n 2     |  subject being n 8
subject  mood n       ->  subject being n 1
subject  being n      ->  main sees n 5        |  main sleeps n 3       |  clause that n 3   |  aside near n 1
clause   that n       ->  clause sees n 3      |  clause sleeps n 1
clause   sees n       ->  clause det n m 1
clause   det n m      ->  clause animal n m 3  |  clause quality n m 1
clause   quality n m  ->  clause animal n m 1
clause   animal n m   ->  main sees n 1        |  main sleeps n 1
clause   sleeps n     ->  main sees n 1
aside    near n       ->  aside the n 1
aside    the n        ->  aside place n 1
aside    place n      ->  main sees n 1        |  main sleeps n 1
main     sees n       ->  object det m 1
object   det m        ->  object quality m 3   |  object colour m 2     |  object thing m 4  |  object animal m 2
object   quality m    ->  object colour m 2    |  object thing m 4      |  object animal m 2
object   colour m     ->  object thing m 1
object   thing m      ->  sentence stop 5      |  where near 2          |  sentence today 1
object   animal m     ->  sentence stop 5      |  where near 2          |  sentence today 1
main     sleeps n     ->  sentence stop 3      |  where near 5          |  sentence today 2
where    near         ->  where the 1
where    the          ->  where place 4        |  where quality 1
where    quality      ->  where place 1
where    place        ->  sentence stop 1
sentence today        ->  sentence stop 1
"""

SEEDS = {"train": 1_000_001, "val": 1_000_002, "entropy": 1_000_003, "test": 1_000_004}   # far from what people type


def arrows(grammar):
    """{place: {next place: probability}}: each line of the grammar, written out for every n and m."""
    def named(name, **number):
        return " ".join(number.get(part, part) for part in name)

    table = {}
    for line, n, m in product(grammar.strip().splitlines(), NUMBERS, NUMBERS):
        left, right = line.split("->")
        row = table.setdefault(named(left.split(), n=n, m=m), {})
        for option in right.split("|"):
            *name, weight = option.split()
            target = named(name, n=n, m=m)
            row[target] = row.get(target, 0) + float(weight) * NUMBERS[n] * NUMBERS[m]
    return {place: {to: w / sum(row.values()) for to, w in row.items()} for place, row in table.items()}


def vocabulary():
    """Every form of every word, in the order of the lexicon."""
    entries = (entry for homes in LEXICON.values() for words in homes.values() for entry in words.split())
    return list(dict.fromkeys(word for entry in entries for word in entry.split("/")))


def choices(place, topic):
    """{word: probability}: what a place in the grammar says under a topic, typos aside."""
    role, form = place.split()[1], -1 if place.endswith("pl") else 0
    weight = {entry.split("/")[form]: (1 if home in ("any", topic) else STRAY) / rank
              for home, words in LEXICON[role].items() for rank, entry in enumerate(words.split(), 1)}
    return {word: w / sum(weight.values()) for word, w in weight.items()}


def inverse_cdf(p, rows, u):
    """One draw from p[row] for each row: the first v whose cumulative probability exceeds u. rows, u (n,) -> (n,)"""
    cdf = p.cumsum(-1)                                                                  # (R, V)
    cdf = cdf / cdf[:, -1:]                                                             # (R, V) ends in 1, and u < 1
    return torch.searchsorted(cdf[rows], u[:, None], right=True)[:, 0]                  # (n,)


def in_parts(f, *tensors, rows=256):
    """f of a few rows at a time: what fits the processor's cache is several times faster."""
    return torch.cat([f(*part) for part in zip(*(tensor.split(rows) for tensor in tensors))])


class Toy:
    """The language as tables, and its exact answers: probabilities in float64, logarithms in nats.

    `topic` (an int, or ids (n,)) asks for p( . | topic); n_topics, or None, for the mixture of topics, eq. (1).
    Tensors may come from any device; answers are on the CPU.
    """

    def __init__(self):
        table = arrows(GRAMMAR)
        self.words, self.topics, self.places = vocabulary(), list(TOPICS), list(table)
        self.V, self.n_topics = V, K = len(self.words), len(self.topics)
        Q = len(self.places)
        self.prior = torch.tensor(list(TOPICS.values()), dtype=torch.double)            # (K,) p(k)
        self.transition = torch.zeros(Q, Q, dtype=torch.double)                         # (Q, Q) T, from row to column
        self.emission = torch.full((K, Q, V), TYPO / V, dtype=torch.double)             # (K, Q, V) p_k(v | h)
        for i, place in enumerate(self.places):
            for target, p in table[place].items():
                self.transition[i, self.places.index(target)] = p
            for k, topic in enumerate(self.topics):
                for word, p in choices(place, topic).items():
                    self.emission[k, i, self.words.index(word)] += (1 - TYPO) * p
        self.initial = self.transition[self.places.index("sentence stop")]              # (Q,) as after a full stop
        self.by_word = self.emission.permute(2, 0, 1).contiguous()                      # (V, K, Q) the same, turned

    def sample(self, n, length, generator=None, topic=None, return_topic=False):
        """n texts of `length` words -> (n, length) int64; with their topics (n,) if asked for. A CPU generator."""
        x, _, k = self._draw(n, length, generator, topic)
        return (x, k) if return_topic else x

    def _draw(self, n, length, generator=None, topic=None):
        """Eq. (1) from left to right. -> words x (n, L), places h (n, L), topics k (n,)"""
        u = torch.rand(2 * length + 1, n, dtype=torch.double, generator=generator)      # (2L + 1, n) all the chance
        k = inverse_cdf(self._log_prior(topic, n).exp(), torch.arange(n), u[-1])        # (n,)
        says = self.emission.flatten(0, 1)                                              # (K Q, V) row k Q + h
        h_l = torch.full_like(k, self.places.index("sentence stop"))                    # (n,) the stop before word 1
        x, h = [], []
        for l in range(length):
            h_l = inverse_cdf(self.transition, h_l, u[l])                               # (n,)
            x.append(inverse_cdf(says, k * len(self.places) + h_l, u[length + l]))      # (n,)
            h.append(h_l)
        return torch.stack(x, 1), torch.stack(h, 1), k

    def log_prob(self, x, topic=None):
        """log p(x), eq. (1). x (n, L) -> (n,) nats; finite for every text."""
        log_evidence = in_parts(self._log_evidence, x)                                  # (n, K)
        return (self._log_prior(topic, len(x)) + log_evidence).logsumexp(-1)            # (n,)

    def topic_posterior(self, x):
        """p(k | x), or p(k | evidence): words x (n, L), or a likelihood (n, L, V) as of `posterior`. -> (n, K)"""
        return (self.prior.log() + in_parts(self._log_evidence, x)).softmax(-1)         # (n, K)

    def predict(self, x, topic=None):
        """p(x_l | x_<l): the perfect autoregressive model. Row l has not seen x_l. x (n, L) -> (n, L, V)"""
        log_prior, rows = self._log_prior(topic, len(x)), []
        for f, log_past in self._forward(self._known(x), len(x)):
            w = (log_prior + log_past).softmax(-1)                                      # (n, K) p(k | x_<l)
            rows.append(self._say(w, f))                                                # (n, V)
        return torch.stack(rows[:-1], 1)                                                # (n, L, V) without word L + 1

    def posterior(self, likelihood, leave_one_out=True, topic=None):
        """Eq. (4), or p(x_l | all evidence) with leave_one_out=False. likelihood (n, L, V) -> (n, L, V)

        likelihood[i, l, v] = p(z_l | x_l = v) up to a factor per (i, l). Zeros are welcome; a row that is all zeros,
        or has an entry that is negative or not finite, is a ValueError.
        """
        likelihood, log_prior = self._checked(likelihood), self._log_prior(topic, len(likelihood))
        p = in_parts(self._leave_one_out, likelihood, log_prior)                        # (n, L, V)
        if not leave_one_out:
            p = p * likelihood                                                          # (n, L, V) Bayes: put it back
            p = p / p.sum(-1, keepdim=True)                                             # (n, L, V)
        return p

    def _leave_one_out(self, likelihood, log_prior):
        """Eq. (4): the two sweeps, and what they say about each word when they meet. -> (n, L, V)"""
        evidence = [torch.tensordot(e, self.by_word, 1) for e in likelihood.unbind(1)]  # L times (n, K, Q) e_l(h)
        *forward, (_, log_all) = self._forward(evidence, len(likelihood))
        g, rows = torch.ones_like(self.by_word[:1]), []                                 # (1, K, Q) no evidence left
        for (f, _), e in zip(reversed(forward), reversed(evidence)):
            q = f * g                                                                   # (n, K, Q)
            q = q / q.sum(-1, keepdim=True)                                             # (n, K, Q)
            log_others = log_all - (q * e).sum(-1).log()                                # (n, K) own evidence removed
            w = (log_prior + log_others).softmax(-1)                                    # (n, K)
            rows.append(self._say(w, q))                                                # (n, V)
            g = (g * e) @ self.transition.T                                             # (n, K, Q) eq. (3)
            g = g / g.amax(-1, keepdim=True)                                            # (n, K, Q) any scale will do
        return torch.stack(rows[::-1], 1)                                               # (n, L, V)

    def entropy(self, length, n=4096):
        """Entropy of `length` words, eq. (5) -> (nats per token, standard error).

        The mean of -log p(x) over samples is noisy. That of -log p(x, h, k) is known exactly, and the two differ only
        by what the words leave open about the path, which is little: only this difference is averaged, over n texts.
        """
        to_nats = torch.special.entr(self.transition).sum(-1)                           # (Q,) H(h_l+1 | h_l)
        say_nats = self.prior @ torch.special.entr(self.emission).sum(-1)               # (Q,) H(x_l | h_l, k)
        law = self.initial                                                              # (Q,) p(h_l), in every topic
        joint = torch.special.entr(self.prior).sum() + torch.special.entr(law).sum()    # () H(k) + H(h_1)
        for _ in range(length - 1):
            joint = joint + law @ (say_nats + to_nats)                                  # ()
            law = law @ self.transition                                                 # (Q,)
        joint = joint + law @ say_nats                                                  # () H(x, h, k)

        x, h, k = self._draw(n, length, torch.Generator().manual_seed(SEEDS["entropy"]))
        log_path = self.prior[k].log() + self.initial[h[:, 0]].log()                    # (n,)
        log_path += self.transition[h[:, :-1], h[:, 1:]].log().sum(-1)                  # (n,)
        log_path += self.emission[k[:, None], h, x].log().sum(-1)                       # (n,) log p(x, h, k)
        nats = (joint + log_path - self.log_prob(x)) / length                           # (n,) its mean is H(x) / L
        return nats.mean().item(), (nats.std() / n ** .5).item()

    def _forward(self, evidence, n):
        """Eq. (2), yielding L + 1 times: f_l (n, K, Q), and log p(evidence before l | k) (n, K) nats.

        Normalised at each word and in each topic, so that nothing can underflow. One norm for all would lose topics
        for good: after 2,000 words of the farm p(sea) is below the smallest float64, yet 2,000 of the sea may follow.
        """
        f = self.initial.expand(n, self.n_topics, -1)                                   # (n, K, Q)
        log_past = torch.zeros(n, self.n_topics, dtype=torch.double)                    # (n, K)
        for e in evidence:
            yield f, log_past
            f = f * e                                                                   # (n, K, Q)
            norm = f.sum(-1, keepdim=True)                                              # (n, K, 1) p(e_l | k, past)
            f, log_past = (f / norm) @ self.transition, log_past + norm[..., 0].log()   # (n, K, Q), (n, K)
        yield f, log_past

    def _known(self, x):
        """The evidence e_l(h) of words x (n, L), or a likelihood: L times (n, K, Q), one by one to spare memory."""
        if x.ndim == 3:
            return (torch.tensordot(e, self.by_word, 1) for e in self._checked(x).unbind(1))
        if x.min() < 0 or x.max() >= self.V:
            raise ValueError(f"ids of words are 0 .. {self.V - 1}: a text with masks has no probability, but "
                             "posterior() takes them as flat evidence")
        return (self.by_word[x_l] for x_l in x.cpu().unbind(1))

    def _log_evidence(self, x):
        """log p(x | k). x (n, L) -> (n, K) nats"""
        *_, (_, log_all) = self._forward(self._known(x), len(x))
        return log_all

    def _say(self, w, q):
        """From topics w (n, K) and places q (n, K, Q) to words: sum_k w(k) sum_h q(h) p_k(v | h). -> (n, V)"""
        return (w[..., None] * q).flatten(1) @ self.emission.flatten(0, 1)              # (n, V)

    def _log_prior(self, topic, n):
        """log p(k), or 0 for the given topic and -inf for the others. -> (n, K)"""
        topic = torch.as_tensor(self.n_topics if topic is None else topic).cpu().expand(n)      # (n,)
        return torch.cat([torch.eye(self.n_topics), self.prior[None]])[topic].log()     # (n, K)

    def _checked(self, likelihood):
        """In float64, with 1 as the largest entry of each row (any factor will do). (n, L, V) -> (n, L, V)"""
        if likelihood.shape[-1] != self.V:
            raise ValueError(f"evidence is one number for each of {self.V} words, not {likelihood.shape[-1]}: "
                             "a mask is a flat row, not a symbol of its own")
        likelihood = likelihood.cpu().double()                                          # (n, L, V)
        top = likelihood.amax(-1, keepdim=True)                                         # (n, L, 1)
        if not ((likelihood >= 0).all() and (top > 0).all() and top.isfinite().all()):
            raise ValueError("each row of a likelihood must be finite, nowhere negative, and somewhere positive")
        return likelihood / top                                                         # (n, L, V)


class ToyCorpus:
    """The toy language as train.py and evaluate.py read a corpus. It has no end, so no text is ever seen twice."""
    name = "toy"

    def __init__(self, block_size=32):
        self.block_size, self.language, self.classes = block_size, Toy(), tuple(TOPICS)
        self.encoding = tokenizer.words(self.language.words)
        self.about = (f"toy: a small English of {self.language.V} words and {self.language.n_topics} topics, "
                      f"fresh texts of {block_size} words without end, entropy known")

    def batch(self, split, n, generator=None):
        """n fresh texts -> (n, block_size) int64. Both splits draw from one law: there is nothing to overfit."""
        return self.examples(split, n, generator)[0]                                    # (n, block_size)

    def windows(self, split="val", most=None):
        """`most` texts (1,000 if not said), the same at every call -> (n, block_size) int64"""
        return self.example_windows(split, most)[0]                                     # (n, block_size)

    def examples(self, split, n, generator=None):
        """`batch` as x (n, L); None, since no token is given; and the topic of each text (n,)"""
        x, topic = self.language.sample(n, self.block_size, generator, return_topic=True)
        return x, None, topic

    def example_windows(self, split="val", most=None):
        return self.examples(split, most or 1000, torch.Generator().manual_seed(SEEDS[split]))

    @cached_property
    def train(self):
        """About 200,000 ids, texts laid end to end -> (m,) int64 numpy. For what must count: n-grams."""
        return self.windows("train", 200_000 // self.block_size).flatten().numpy()

    @cached_property
    def val(self):
        return self.windows("val", 20_000 // self.block_size).flatten().numpy()

    @cached_property
    def bytes_per_token(self):
        """Expected bytes per word of a text, the space between two words counted. Exact."""
        L, V = self.block_size, self.language.V
        law = self.language.posterior(torch.ones(1, L, V)).mean((0, 1))                 # (V,) no evidence: p(x_l = v)
        letters = torch.tensor([len(word.encode()) for word in self.language.words])    # (V,)
        return (law @ letters.double()).item() + (L - 1) / L

    def text(self, ids):
        return tokenizer.decode(self.encoding, ids)


if __name__ == "__main__":
    toy = Toy()
    print(f"{toy.V} words, {toy.n_topics} topics with {len(toy.places)} places of the grammar each\n")
    for ids, k in zip(*toy.sample(10, 24, torch.Generator().manual_seed(0), return_topic=True)):
        print(f"{toy.topics[k]:8s} ", *(toy.words[i] for i in ids))
    for length in (8, 32, 64):
        nats, error = toy.entropy(length)
        print(f"entropy of {length:2d} words: {nats:.4f} nats per token, standard error {error:.4f}")
