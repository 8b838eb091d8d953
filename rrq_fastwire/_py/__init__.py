"""The pure twin. It says what rrq_fastwire._c says, in Python."""

from .frames import *
from .messages import *

IMPLEMENTATION: str = "python"
