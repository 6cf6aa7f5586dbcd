"""`python -m m4.data fake NAME FOLDER [--patients=40] [--seed=0]`."""

import argparse
import sys

from m4.data import fake
from m4.errors import UserError


def main(argv: list[str]) -> int:
    """Write the files; returns the exit code."""
    parser = argparse.ArgumentParser("python -m m4.data fake", description=fake.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=[*fake.WRITERS])
    parser.add_argument("folder", help="a raw folder; the data set gets its own folder in it")
    parser.add_argument("--patients", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        root = fake.write(args.name, args.folder, patients=args.patients, seed=args.seed)
    except UserError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    print(f"{root}: invented {args.name} files of {args.patients} patients")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
