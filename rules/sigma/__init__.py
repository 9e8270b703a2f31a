"""Sigma: read, parse, plan and match single-event rules."""
