"""Direct preference optimisation; `--help` lists the options, and without any of them it runs a demonstration."""

import sys

from raydpo.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
