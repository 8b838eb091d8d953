"""The compiled implementation, with the same names as the pure Python one."""

from ..messages import *
from .codec import *
from .frames import *

IMPLEMENTATION: str = "cython"
