"""`python -m invertible.cli` is the `invertible` command."""

import sys

from invertible.cli import main

sys.exit(main())
