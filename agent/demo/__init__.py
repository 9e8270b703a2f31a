"""The demo: a seeded day of logs with attacks in it (`generate`), and how alerts compare with them (`judge`)."""

from agent.demo.generate import generate, last_working_day
from agent.demo.score import Labels, Scorecard, Step, Story, Verdict, judge

__all__ = ["Labels", "Scorecard", "Step", "Story", "Verdict", "generate", "judge", "last_working_day"]
