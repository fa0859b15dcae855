"""Contrastive preference optimisation and SimPO, which need no reference; `--help` lists the options."""

import sys

from raydpo.cli.run import main

if __name__ == "__main__":
    sys.exit(main(program="cpo"))
