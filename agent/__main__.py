"""`python -m agent` is `vedette`."""

from agent.cli import start

start()
