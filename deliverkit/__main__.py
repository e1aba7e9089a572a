"""`python -m deliverkit` is the command `deliverkit`."""

import sys

from deliverkit.cli import main

sys.exit(main())
