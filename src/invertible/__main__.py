"""`python -m invertible` is the command line, for torchrun and `accelerate launch`."""

import sys

from invertible.cli import main

sys.exit(main())
