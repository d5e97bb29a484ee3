"""
All mutants: (file, right, wrong, names of the test files that should fail, what is wrong).

`right` must occur in the file exactly once; test_mutants.py checks it.
"""
from pathlib import Path

from tests.mutants.claims import CLAIMS
from tests.mutants.edits import EDITS
from tests.mutants.embedding import EMBEDDING
from tests.mutants.evidence import EVIDENCE
from tests.mutants.flows import FLOWS
from tests.mutants.front import FRONT
from tests.mutants.front2 import FRONT2
from tests.mutants.gradients import GRADIENTS, RECIPES
from tests.mutants.grid import GRID
from tests.mutants.hybrids import HYBRIDS
from tests.mutants.insertion import INSERTION
from tests.mutants.latents import LATENTS
from tests.mutants.length2 import LENGTH2
from tests.mutants.program import PROGRAM
from tests.mutants.reason2 import GAINS
from tests.mutants.reasoning import REASONING
from tests.mutants.rewards import POLICY
from tests.mutants.sampling import SAMPLING
from tests.mutants.search import SEARCH
from tests.mutants.seq2seq import SEQ2SEQ
from tests.mutants.speed import SPEED
from tests.mutants.text_statistics import BY_SOURCE, COLLAPSE, LENGTHS, STATISTICS
from tests.mutants.theory import THEORY
from tests.mutants.thoughts import THOUGHTS

TESTS = Path(__file__).parent.parent
MUTANTS = [*THEORY, *HYBRIDS, *EMBEDDING, *SAMPLING, *SEARCH, *SEQ2SEQ, *STATISTICS, *COLLAPSE,
           *BY_SOURCE, *LENGTHS, *REASONING, *THOUGHTS, *POLICY, *PROGRAM, *GRID, *EDITS, *EVIDENCE,
           *FLOWS, *FRONT, *FRONT2, *GRADIENTS, *RECIPES, *INSERTION, *LATENTS, *LENGTH2, *GAINS,
           *CLAIMS, *SPEED]


def find_tests(names):
    """The paths of test files by their names, which are unique: "test_theory test_bd3lm"."""
    paths = {path.stem: path.relative_to(TESTS.parent).as_posix()
             for path in TESTS.rglob("test_*.py")}
    return [paths[name] for name in names.split()]
