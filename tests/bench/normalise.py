"""What normalisation makes of real logs, beside the documents of Elastic's integrations: one table.

python -m tests.bench.normalise [PRODUCT...] [--fields N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.integration import sets
from tests.integration.integrations import PRODUCTS, WITHOUT, compare, explained, table

DATA = Path(os.environ.get("VEDETTE_TEST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def main(arguments: Sequence[str]) -> int:
    reader = argparse.ArgumentParser(prog="python -m tests.bench.normalise", description=__doc__)
    reader.add_argument("products", nargs="*", metavar="PRODUCT", help="only these products; all without")
    reader.add_argument("--fields", type=int, default=0, help="show this many fields that differ most, by product")
    options = reader.parse_args(arguments)
    if unknown := set(options.products) - set(PRODUCTS):
        reader.error(f"no product {', '.join(sorted(unknown))}; there are {', '.join(PRODUCTS)}")
    tallies = compare(DATA / "integrations/integration-pipeline-tests.tar.gz", options.products)
    print(table(tallies))
    for name, tally in tallies.items() if options.fields else ():
        print(f"\n{name}")
        for what in ("different", "missing", "extra"):
            most = getattr(tally, what).most_common(options.fields)
            print(f"  {what}: " + ", ".join(f"{field} {number}" for field, number in most))
    print("\nDifferences by class\n" + explained(tallies))
    if not options.products:
        print("\nNot read")
        print("\n".join(f"{name:32} {reason}" for name, reason in WITHOUT.items()))
        fates = sets.fates(DATA)
        print("\nSets without expected documents\n" + sets.table(fates))
        faults = [f"{name}: {fault}" for name, fate in fates.items() for fault in fate.faults]
        print("\n".join(faults[:20]), end="\n" if faults else "")
        return int(bool(faults) or any(tally.lost for tally in tallies.values()))
    return int(any(tally.lost for tally in tallies.values()))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[1:]))
