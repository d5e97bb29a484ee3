"""
Chapter 13. Characters as pictures of 5 x 7 pixels, for `--method sed --table glyphs`.

A character is seven digits, one for each row from the top; a digit (0 to 9, a to v) is the five
pixels of its row as a binary number. "ehhvhhh" is A: 01110 10001 10001 11111 10001 10001 10001.
"""
import torch

from flags import UserError

PIXELS = 35
FONT = dict(zip(
    " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"
    "abcdefghijklmnopqrstuvwxyz{|}~\n",
    "0000000 4444004 aaa0000 aavavaa 4fke5u4 op248j3 cik8lid c480000 2488842 8422248 04lel40 "
    "044v440 0000c48 000v000 00000cc 01248g0 ehjlphe 4c4444e eh1248v v2421he 26aiv22 vgu11he "
    "68guhhe v124888 ehhehhe ehhf12c 0cc0cc0 0cc0c48 248g842 00v0v00 8421248 eh12404 eh1dlle "
    "ehhvhhh uhhuhhu ehggghe sihhhis vgguggv vgguggg ehgnhhf hhhvhhh e44444e 72222ic hikokih "
    "ggggggv hrllhhh hhpljhh ehhhhhe uhhuggg ehhhlid uhhukih fgge11u v444444 hhhhhhe hhhhha4 "
    "hhhllla hha4ahh hhha444 v1248gv e88888e 0g84210 e22222e 4ah0000 000000v 8420000 "
    "00e1fhf ggmphhu 00egghe 11djhhf 00ehvge 698s888 0fhhf1e ggmphhh 40c444e 20622ic ggikoki "
    "c44444e 00qllhh 00mphhh 00ehhhe 00uhugg 00djf11 00mpggg 00ege1u 88s8896 00hhhjd 00hhha4 "
    "00hhlla 00ha4ah 00hhf1e 00v248v 2448442 4444444 8442448 008l200 0159v84".split()))


def draw_glyph(encoding, id):
    """The picture of a token, which must be one character of the font. -> (35,) of 1 and -1"""
    text = encoding.decode([id])
    if text not in FONT:
        raise UserError(f"--table glyphs draws one printable character a token, and {text!r} is "
                        "none: take --tokenizer chars, or --table random")
    rows = [int(digit, 32) for digit in FONT[text]]  # 7 of 5 bits
    return torch.tensor([1.0 if row >> place & 1 else -1.0
                         for row in rows for place in (4, 3, 2, 1, 0)])  # (35,)
