"""`python -m rrq_fastwire.runner`."""

from . import main

if __name__ == "__main__":
    main()
