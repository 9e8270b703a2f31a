"""Findings become alerts: ids, suppression, the delivery cap, and the ECS document an analyst reads.

An alert's id is derived from what was found and never from when, how often or by which version it was found, so the
same finding made again is the same alert.
"""

from agent.alerting.judge import Judge, Suppression, alert_id, quarantine_finding

__all__ = ["Judge", "Suppression", "alert_id", "quarantine_finding"]
