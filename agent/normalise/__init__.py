"""Normalisation: native records of any supported product to ECS, as columns for detection and as whole documents.

`Normaliser` is the door. Mappings are declarative (`mappings/*.yml`), types come from the ECS catalogue (`ecs.txt`).
"""

from agent.normalise.normaliser import Normalised, Normaliser

__all__ = ["Normalised", "Normaliser"]
