"""Mutants of grids on the page of --html."""
GRID = [
    ("data/sudoku.py", "wrong |= digit & (clues > 0) & (clues != answer)", "wrong |= False",
     "test_puzzles", "an answer to another question than the one in front looks right"),
    ("data/sudoku.py", ".any(-1) & digit | (answer == 0)", ".any(-1) & digit", "test_puzzles",
     "an empty cell of an answer looks right"),
    ("viewer/html_player.py", "self.dataset.faults(z.cpu()) & ~self.given.cpu()",
     "self.dataset.faults(z.cpu())", "test_grid", "a clue is marked as wrong"),
    ("viewer/html_player.py", "model.config.data and frozen.shape[1] == model.config.block_size",
     "model.config.data", "test_grid", "a beginning of a grid is drawn as a grid"),
]
