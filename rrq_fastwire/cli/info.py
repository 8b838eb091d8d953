"""`info`: print what is installed and where it runs."""

from __future__ import annotations

import platform

from .. import IMPLEMENTATION, JSON_BACKEND, __version__, _json


def run() -> int:
    """Print the version, the implementation, the JSON library and the platform."""
    print(f"rrq-fastwire    {__version__}")
    print(f"implementation  {IMPLEMENTATION}")
    print(f"JSON backend    {JSON_BACKEND} {_json.version}")
    print(f"Python          {platform.python_implementation()} {platform.python_version()}")
    print(f"platform        {platform.platform()}")
    return 0
