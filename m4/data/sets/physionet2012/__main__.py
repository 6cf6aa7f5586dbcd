"""`python -m m4.data.sets.physionet2012 RAW_DIR` downloads the challenge's files into RAW_DIR."""

import sys

from m4.data.sets.physionet2012 import fetch
from m4.errors import DataError

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m m4.data.sets.physionet2012 RAW_DIR")
    try:
        fetch(sys.argv[1])
    except DataError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        sys.exit(error.exit_code)
