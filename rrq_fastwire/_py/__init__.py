"""The pure Python implementation, with the same names as the compiled one."""

from ..messages import *
from .codec import *
from .frames import *

IMPLEMENTATION: str = "python"
