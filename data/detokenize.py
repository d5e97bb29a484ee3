"""
From the tokens of old corpora ("the cat 's 1 @.@ 5 dollars .") back to text, as the papers' tables
do.

Perplexities per GPT-2 token on WikiText, PTB, LM1B, LAMBADA and the scientific papers are quoted on
text that went through these rules, in this order (MDLM, arXiv:2406.07524, and all work that
compares with it). The rules are rough: they miss some cases and damage some text. They are a
convention, so nothing is improved here. One rule of the public code is left out, since it never
applies: it looks for a digit between slashes.
"""
import re


def replacer(*pairs):
    """The function that applies the replacements in order. What is replaced is a string or a
    regular expression."""
    def apply(text):
        for what, by in pairs:
            text = text.replace(what, by) if isinstance(what, str) else what.sub(by, text)
        return text
    return apply


def no_space_before(*marks):
    """'word , word' -> 'word, word'"""
    return [(f" {mark} ", f"{mark} ") for mark in marks]


NUMBERS = [(" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")]
BRACKETS = [(re.compile(rf"{left}\s*([^{right}]*?)\s*{right}"), rf"{out[0]}\1{out[1]}")
            for left, right, out in ((r"\(", r"\)", "()"), (r"\[", r"\]", "[]"), ("{", "}", "{}"),
                                     ('"', '"', '""'), ("'", "'", "''"))]
TIGHT = [(re.compile(rf"{left} ([^{inside}]+) {right}"), rf"{out[0]}\1{out[1]}")
         for left, inside, right, out in (('"', '"', '"', '""'), ("'", "'", "'", "''"),
                                          (r"\(", r"\(\)", r"\)", "()"),
                                          (r"\[", r"\[\]", r"\]", "[]"))]

wikitext = replacer(("s '", "s'"), *NUMBERS, *no_space_before(":", ";", ".", "!", "?", ","),
                    *BRACKETS, ("= = = =", "===="), ("= = =", "==="), ("= =", "=="),
                    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"), (" \n", "\n"), ("\n ", "\n"),
                    (" N ", " 1 "), (" 's", "'s"))

ptb = replacer((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/"),
               *[(" N ", " 1 ")] * 2,  # twice, since the two N of " N N " share a space
               ("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?"))

lm1b = replacer(("http : / / ", "http://"), ("https : / / ", "https://"),
                (re.compile(r" '(\w+)"), r"'\1"), (re.compile(r" (\w+) \. "), r" \1. "),
                (re.compile(r" (\w+) \.$"), r" \1."),
                *no_space_before("?"), (re.compile(r" \?$"), "?"),
                *no_space_before("!"), (re.compile(r" !$"), "!"),
                *no_space_before(",", ":", ";"), (" / ", "/"), *TIGHT, ("$ ", "$"), ("£ ", "£"))


def lambada(text):
    return "\n" + text.replace("“", '"').replace("”", '"').strip()


def scientific(text):
    return lm1b(wikitext(text))


RULES = {"wikitext": wikitext, "ptb": ptb, "lm1b": lm1b, "lambada": lambada,
         "scientific": scientific}
