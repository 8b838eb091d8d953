"""`python -m rrq_fastwire`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
