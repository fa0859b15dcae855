"""Score the reference ahead of training, for jobs/dpo.py to find; `--help` lists the options."""

import sys

from raydpo.cli.run import main

if __name__ == "__main__":
    sys.exit(main(program="score_reference"))
