"""Show what a model will see of preference data; `--help` lists the options."""

import sys

from raydpo.cli.inspect_data import main

if __name__ == "__main__":
    sys.exit(main())
