"""
Old corpora come in tokens of their own time ("the cat 's 1 @.@ 5 dollars ."): back to text, as the papers' tables do.

Perplexities of GPT-2's tokens on WikiText, PTB, LM1B, LAMBADA and the scientific papers are quoted on text that went
through these rules, in this order (MDLM, arXiv:2406.07524, and all that compare with it). They are rough: they undo
what is commonest and break a little. That is part of the convention, so nothing is improved here. One rule of the
public code is left out, since it never applies: it looks for a digit between slashes.
"""
import re


def rules(*pairs):
    """A function that replaces what, by what, in order. Patterns are regular expressions, strings are themselves."""
    def apply(text):
        for what, by in pairs:
            text = text.replace(what, by) if isinstance(what, str) else what.sub(by, text)
        return text
    return apply


def after(*marks):
    """A space before such a mark goes: 'word , word' -> 'word, word'"""
    return [(f" {mark} ", f"{mark} ") for mark in marks]


NUMBERS = [(" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")]
BRACKETS = [(re.compile(rf"{left}\s*([^{right}]*?)\s*{right}"), rf"{out[0]}\1{out[1]}") for left, right, out in
            ((r"\(", r"\)", "()"), (r"\[", r"\]", "[]"), ("{", "}", "{}"), ('"', '"', '""'), ("'", "'", "''"))]
TIGHT = [(re.compile(rf"{left} ([^{inside}]+) {right}"), rf"{out[0]}\1{out[1]}") for left, inside, right, out in
         (('"', '"', '"', '""'), ("'", "'", "'", "''"), (r"\(", r"\(\)", r"\)", "()"), (r"\[", r"\[\]", r"\]", "[]"))]

wikitext = rules(("s '", "s'"), *NUMBERS, *after(":", ";", ".", "!", "?", ","), *BRACKETS,
                 ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
                 (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"))

ptb = rules((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/"),
            *[(" N ", " 1 ")] * 2, ("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?"))        # twice: N N share a space

lm1b = rules(("http : / / ", "http://"), ("https : / / ", "https://"), (re.compile(r" '(\w+)"), r"'\1"),
             (re.compile(r" (\w+) \. "), r" \1. "), (re.compile(r" (\w+) \.$"), r" \1."),
             *after("?"), (re.compile(r" \?$"), "?"), *after("!"), (re.compile(r" !$"), "!"),
             *after(",", ":", ";"), (" / ", "/"), *TIGHT, ("$ ", "$"), ("£ ", "£"))


def lambada(text):
    return "\n" + text.replace("“", '"').replace("”", '"').strip()


def scientific(text):
    return lm1b(wikitext(text))


RULES = {"wikitext": wikitext, "ptb": ptb, "lm1b": lm1b, "lambada": lambada, "scientific": scientific}
