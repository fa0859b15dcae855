"""List, verify and prune the stored scores of references; `--help` says how."""

import sys

from raydpo.cli.reference_store import main

if __name__ == "__main__":
    sys.exit(main())
