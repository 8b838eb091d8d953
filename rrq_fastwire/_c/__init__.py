"""The compiled twin. It says what rrq_fastwire._py says, in Cython."""

from .frames import *
from .messages import *

IMPLEMENTATION: str = "cython"
