"""Detectors: baselines that learn as they read, and models that were trained before."""
