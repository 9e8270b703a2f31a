"""What the daemon says of itself: metrics, health over HTTP, words to the service manager, its own log.

Figures come from the store (`agent.store.numbers`), from what the service knows (`metrics.Snapshot`) and from the hot
path (`meters.Meters`). `metrics.METRICS` is the one list of names. Nothing is imported here: the command line answers
at once, and only the daemon loads what renders metrics.
"""
