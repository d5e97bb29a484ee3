"""
Images as texts: the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn contains (UCI,
Alpaydin and Kaynak).

    python -m data.digits                                # print some of each class, test the judge
    python train.py --data digits --method udlm --labels
    python sample.py --out_dir out/digits-udlm-labels --label 7 --guidance 2 --png sevens.png

17 gray levels are 17 tokens, an image is a text of 64 in reading order, and the digit is its class.
A fifth is held out, by a hash of the pixels. The judge of samples is the nearest training image:
its digit, and its distance. scikit-learn (requirements-extras.txt) comes with the images, so
nothing is downloaded.
"""
import hashlib
import struct
import zlib
from functools import cached_property

import numpy as np
import torch

from data.base import Dataset
from data.files import write_file
from data.tokenizer import grid
from flags import UserError
from script import one_line_errors

SIDE, LEVELS = 8, " .'`,:;-~+=*oO#%@"  # the character of each gray level, from black to white
HELD_OUT_BYTES = 51                              # of the 256 values of a byte of the hash


class Digits(Dataset):
    """Handwritten digits."""
    name, classes, block_size = "digits", tuple("0123456789"), SIDE * SIDE
    bytes_per_token = 1.0  # one pixel counts as one byte
    is_text, image_size = False, SIDE * SIDE
    independent_texts = True

    def __init__(self, block_size=SIDE * SIDE):
        if block_size != SIDE * SIDE:
            raise UserError(f"an image has {SIDE * SIDE} tokens: leave out "
                            f"--block_size {block_size}")
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError("--data digits needs scikit-learn, which contains them: "
                            "pip install scikit-learn") from None
        x, label = load_digits(return_X_y=True)  # (n, 64), (n,)
        x = x.astype(np.int64)  # (n, 64) levels 0 .. 16
        hashes = [hashlib.sha256(bytes(image.tolist())).digest() for image in x]
        held = np.array([digest[0] < HELD_OUT_BYTES for digest in hashes])  # (n,)
        self.images = {split: torch.from_numpy(x[rows]) for split, rows in
                       (("train", ~held), ("val", held))}  # (n, 64) each
        self.labels = {split: torch.from_numpy(label[rows].astype(np.int64)) for split, rows in
                       (("train", ~held), ("val", held))}  # (n,) each
        self.encoding = grid(LEVELS, SIDE)
        self.about = f"digits: {len(x):,} images of 8 x 8 pixels in 17 gray levels, {held.sum()} " \
                     f"of them held out"

    @classmethod
    def load(cls, data, block_size=SIDE * SIDE, tokenizer="auto", vocab_size=1024, cache=None):
        return cls(block_size)

    def examples(self, split, n, generator=None):
        """n random images and their digits."""
        x, label = self.images[split], self.labels[split]  # (m, 64), (m,)
        rows = torch.randint(len(x), (n,), generator=generator)  # (n,)
        return x[rows], None, label[rows]  # (n, 64), (n,)

    def example_windows(self, split="val", most=None):
        self.check_split(split)
        x, label = self.images[split], self.labels[split]  # (n, 64), (n,)
        rows = torch.linspace(0, len(x) - 1, min(most or len(x), len(x))).long()  # (m,)
        return x[rows], None, label[rows]  # (m, 64), (m,)

    @cached_property
    def train(self):
        return self.windows("train").flatten().numpy()  # (n 64,)

    @cached_property
    def val(self):
        return self.windows("val").flatten().numpy()  # (n 64,)

    def nearest(self, x):
        """The digit of the nearest training image, its distance in gray levels per pixel. -> (n,),
        (n,)
        """
        images = self.images["train"].double()  # (m, 64)
        distance, row = torch.cdist(x.cpu().double(), images).min(-1)  # (n,), (n,)
        return self.labels["train"][row], distance / SIDE  # (n,), (n,)

    def score(self, x, label=None):
        digit, distance = self.nearest(x)  # (n,), (n,)
        rows = [("distance to the nearest training image, levels", distance.double())]
        if label is not None:
            right = (digit == label.cpu()).double()  # (n,)
            rows.append(("its digit is the one asked for", right))
        return rows

    @classmethod
    def render(cls, ids, path):
        write_png(path, torch.tensor(ids))


def write_png(path, x, columns=10, scale=20):
    """Images x (n, 64) as a grid in a PNG file. It needs a signature and four chunks, no
    library."""
    x = torch.as_tensor(x).cpu().clamp(0, len(LEVELS) - 1).view(-1, SIDE, SIDE).numpy()  # (n, 8, 8)
    columns, cell = min(columns, len(x)), (SIDE + 1) * scale
    rows = -(-len(x) // columns)
    grid = np.full((rows * cell - scale, columns * cell - scale), 96, np.uint8)  # (H, W) gray
    for i, image in enumerate(x):
        top, left = i // columns * cell, i % columns * cell
        gray = (image * 255 // (len(LEVELS) - 1)).astype(np.uint8)  # (8, 8)
        gray = gray.repeat(scale, 0).repeat(scale, 1)  # (8 scale, 8 scale)
        grid[top:top + SIDE * scale, left:left + SIDE * scale] = gray
    head = struct.pack(">IIBBBBB", grid.shape[1], grid.shape[0], 8, 0, 0, 0, 0)  # 8 bits of gray
    lines = b"".join(b"\0" + line.tobytes() for line in grid)  # \0: without a filter
    write_file(path, b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) +
               png_chunk(b"tEXt", b"Software\0palimpsest") +  # see data/folders.py
               png_chunk(b"IDAT", zlib.compress(lines)) + png_chunk(b"IEND", b""))


def png_chunk(kind, data):
    """Length, kind, data, and the CRC of the last two."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def main():
    """Some digits of each class, and how well the nearest training image tells them."""
    digits = Digits()
    x, _, label = digits.example_windows()
    for digit in range(10):
        shown = [digits.text(image.tolist()).split("\n") for image in x[label == digit][:6]]
        print(*("   ".join(line) for line in zip(*shown)), "", sep="\n")
    guess, distance = digits.nearest(x)
    right = (guess == label).double().mean()  # ()
    print(f"{digits.about}; the nearest training image has the right digit in {right:.1%} of the "
          f"held-out ones, {distance.mean():.2f} levels away")


if __name__ == "__main__":
    with one_line_errors():
        main()
