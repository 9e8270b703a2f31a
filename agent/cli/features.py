"""`vedette features`: what a recipe makes of log files, before anything is trained on it."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli.options import AsJson
from agent.cli.terminal import print_json, safe, say, table

if TYPE_CHECKING:
    from agent.model import Records
    from agent.science.train import Table

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Feature recipe (YAML).")]
LogPaths = Annotated[list[Path], typer.Argument(metavar="LOGS...", help="Log files, folders or archives.")]
_BARS = "▁▂▃▄▅▆▇█"


def features(
    recipe: RecipeFile,
    logs: LogPaths,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Rows of features as CSV on standard output.")] = False,
) -> None:
    """Show the features that a recipe makes of log files; rarities are those among these very logs.

    Examples:
      vedette features recipes/logons-by-user.yml /var/log/auth.log
      vedette features recipes/logons-by-user.yml logs/ --csv > features.csv
    """
    from agent.science.inputs import load
    from agent.science.train import collect

    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    found = collect(load(recipe), reading(logs))
    found = found.resolved(found.learn())
    if as_json:
        print_json(_rows(found))
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        names = found.featuriser.recipe.entity
        writer.writerow(["@timestamp", *names, *found.featuriser.columns])
        for row in _rows(found):
            texts = [safe(value) for value in row.get("entity", {}).values()]
            writer.writerow([row["@timestamp"], *texts, *row["features"].values()])
    else:
        _summarise(found)


def reading(paths: Sequence[Path]) -> Iterator[Records]:
    """Yield what is in *paths*; progress and what could not be read go to standard error."""
    from agent.science.inputs import Logs

    logs, total, shown = Logs(paths), 0, sys.stderr.isatty()
    for records in logs:
        total += len(records)
        if shown:
            sys.stderr.write(f"\r\x1b[K{total:,} events read")
            sys.stderr.flush()
        yield records
    if shown:
        sys.stderr.write("\r\x1b[K")
    for path, reason in logs.notes.items():
        print(safe(f"not read: {path}: {reason}"), file=sys.stderr)


def _rows(found: Table) -> Iterator[dict[str, Any]]:
    from agent.normalise.clock import to_text

    columns = found.featuriser.columns
    for place, (time, values) in enumerate(zip(found.time.tolist(), found.values.tolist(), strict=True)):
        numbers = [None if math.isnan(value) else value for value in values]
        entity = {"entity": dict(found.entities[place])} if found.entities else {}
        yield {"@timestamp": to_text(time), **entity, "features": dict(zip(columns, numbers, strict=True))}


def _summarise(found: Table) -> None:
    from agent.normalise.clock import to_text

    recipe = found.featuriser.recipe
    what = "windows" if recipe.entity else "events"
    if not len(found):
        say(f"{recipe.name}: no {what} that the recipe is about; look at its 'where' and fields")
        raise typer.Exit(1)
    span = f"{to_text(int(found.time[0]))} to {to_text(int(found.time[-1]))}"
    say(f"{recipe.name}: {len(found):,} {what}, {len(found.featuriser.columns)} columns, {span}")
    rows = [_line(name, found.values[:, place]) for place, name in enumerate(found.featuriser.columns)]
    table(["feature", "missing>", "min>", "median>", "max>", "distribution"], rows)


def _line(name: str, column: Any) -> list[str]:
    """Return a row of the summary; the bars' heights are by logarithm, so that a few outliers can be seen."""
    import numpy as np

    known = column[~np.isnan(column)]
    missing = f"{1 - len(known) / len(column):.0%}"
    if not len(known):
        return [name, missing, "", "", "", ""]
    counts = np.log1p(np.histogram(known, bins=16)[0])
    bars = "".join(_BARS[round(height)] if height else " " for height in counts / counts.max() * (len(_BARS) - 1))
    return [name, missing, *(f"{number:.6g}" for number in (known.min(), np.median(known), known.max())), bars]
