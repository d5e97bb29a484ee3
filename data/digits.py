"""
Images as texts: the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries (UCI, Alpaydin and Kaynak).

    python -m data.digits                                # look at some of each class, and at how good the judge is
    python train.py --data digits --method udlm --labels
    python sample.py --out_dir out/digits-udlm --label 7 --guidance 2 --num_samples 16 --png sevens.png

17 grey levels are 17 tokens, an image is a text of 64 in reading order, and the digit is its class. A fifth is held
out, by a hash of the pixels. The judge of samples is the nearest of the training images: its digit, and how far it is.
It needs scikit-learn (requirements-extras.txt), which brings the images along: nothing is downloaded.
"""
import hashlib
import struct
import zlib
from functools import cached_property

import numpy as np
import torch

from data import BadInput, beside
from data.tokenizer import decode, pixels

SIDE, LEVELS = 8, " .'`,:;-~+=*oO#%@"                    # the character of each grey level, from black to white
HELD_OUT = 51                                            # of 256 values of a byte of the hash


class Digits:
    """The images as train.py and evaluate.py read a corpus."""
    name, classes, block_size = "digits", tuple("0123456789"), SIDE * SIDE
    bytes_per_token = 1.0                                # a pixel is as good as a byte

    def __init__(self, block_size=SIDE * SIDE):
        if block_size != SIDE * SIDE:
            raise BadInput(f"an image has {SIDE * SIDE} tokens: leave out --block_size {block_size}")
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise BadInput("--data digits needs scikit-learn, which carries them: pip install scikit-learn") from None
        x, label = load_digits(return_X_y=True)                                         # (n, 64), (n,)
        x = x.astype(np.int64)                                                          # (n, 64) levels 0 .. 16
        held = np.array([hashlib.sha256(bytes(image.tolist())).digest()[0] < HELD_OUT for image in x])   # (n,)
        self.split = {name: (torch.from_numpy(x[rows]), torch.from_numpy(label[rows].astype(np.int64)))
                      for name, rows in (("train", ~held), ("val", held))}
        self.encoding = pixels(LEVELS)
        self.about = f"digits: {len(x):,} images of 8 x 8 pixels in 17 grey levels, {held.sum()} of them held out"

    def examples(self, split, n, generator=None):
        """n random images x (n, 64); None, since no pixel is given; and their digits (n,)"""
        x, label = self.split[split]
        rows = torch.randint(len(x), (n,), generator=generator)                         # (n,)
        return x[rows], None, label[rows]

    def example_windows(self, split="val", most=None):
        """The images of the split, or `most` of them, evenly spread."""
        x, label = self.split[split]
        rows = torch.linspace(0, len(x) - 1, min(most or len(x), len(x))).long()        # (m,)
        return x[rows], None, label[rows]

    def batch(self, split, n, generator=None):
        return self.examples(split, n, generator)[0]                                    # (n, 64)

    def windows(self, split="val", most=None):
        return self.example_windows(split, most)[0]                                     # (m, 64)

    @cached_property
    def train(self):
        return self.windows("train").flatten().numpy()                                  # (m,)

    @cached_property
    def val(self):
        return self.windows("val").flatten().numpy()                                    # (m,)

    def text(self, ids):
        return decode(self.encoding, ids)

    def nearest(self, x):
        """The digit of the nearest training image, and its distance in grey levels per pixel. -> (n,), (n,)"""
        images, label = self.split["train"]
        distance, row = torch.cdist(x.cpu().double(), images.double()).min(-1)          # (n,), (n,)
        return label[row], distance / SIDE

    def rate(self, x, label=None):
        """What evaluate.py says of images x (n, 64): [(what, (n,))]"""
        digit, distance = self.nearest(x)
        rows = [("distance to the nearest training image, levels", distance.double())]
        return rows if label is None else rows + [("its digit is the one asked for", (digit == label.cpu()).double())]


def png(path, x, columns=10, scale=6):
    """Images x (n, 64) as a grid in a PNG file, with the standard library alone: a signature, and three chunks."""
    x = torch.as_tensor(x).cpu().clamp(0, len(LEVELS) - 1).view(-1, SIDE, SIDE).numpy()
    columns, cell = min(columns, len(x)), (SIDE + 1) * scale
    grid = np.full((-(-len(x) // columns) * cell - scale, columns * cell - scale), 96, np.uint8)     # grey between
    for i, image in enumerate(x):
        top, left = i // columns * cell, i % columns * cell
        grey = (image * 255 // (len(LEVELS) - 1)).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
        grid[top:top + SIDE * scale, left:left + SIDE * scale] = grey
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", grid.shape[1], grid.shape[0], 8, 0, 0, 0, 0)          # 8 bits of grey
    rows = b"".join(b"\0" + row.tobytes() for row in grid)                               # \0: no filter
    with beside(path) as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) +
                   chunk(b"IEND", b""))


if __name__ == "__main__":
    digits = Digits()
    x, _, label = digits.example_windows()
    for digit in range(10):
        shown = [digits.text(image.tolist()).split("\n") for image in x[label == digit][:6]]
        print(*("   ".join(line) for line in zip(*shown)), "", sep="\n")
    guess, distance = digits.nearest(x)
    print(f"{digits.about}; the nearest training image has the right digit in {(guess == label).double().mean():.1%} "
          f"of the held-out ones, {distance.mean():.2f} levels away")
