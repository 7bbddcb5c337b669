"""`python -m fastmeta` is the command `fastmeta`."""

import sys

from fastmeta.train.cli import main

sys.exit(main())
