"""`python -m ctxft` is the same as the `ctxft` command."""

import sys

from ctxft.cli import main

if __name__ == "__main__":
    sys.exit(main())
