"""`vedette rules`: rules are written, tested, measured, run and silenced by the commands of this room."""

from __future__ import annotations

import typer

from rules.commands import measure, pack, silence, work

app = typer.Typer(help="The rules: write, test and measure them; which run, which are silent.", no_args_is_help=True)
app.command("list")(silence.list_)
app.command("disable")(silence.disable)
app.command("enable")(silence.enable)
app.command("check")(work.check)
app.command("test")(work.put)
app.command("explain")(work.explain)
app.command("coverage")(measure.coverage)
app.command("diff")(measure.diff)
app.command("backtest")(measure.backtest)
app.command("tune")(measure.tune)
app.command("sign")(pack.sign)
