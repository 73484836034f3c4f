"""`python -m ragx`, and the console script: the command line, or exit code 70 where it cannot even be imported.

Python's own code for that is 1, which would look like a failed gate.
"""

import sys
import traceback

try:
    from ragx.cli.main import run
except Exception:  # noqa: BLE001 - what does not fit together is found out in many ways
    traceback.print_exc()
    sys.stderr.write("ragx: this installation is incomplete; install it again\n")
    sys.exit(70)

if __name__ == "__main__":
    run()
