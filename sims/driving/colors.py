"""What things on the road look like in schematic pictures."""

from __future__ import annotations

__all__ = ["BODIES", "EGO", "LAND", "LAYERS", "PLAN", "SKY", "TRAIL"]

SKY = (150, 195, 235)
LAND = (104, 124, 88)
LAYERS = {
    "drivable": (72, 72, 78),
    "crossing": (150, 140, 165),
    "line": (240, 240, 235),
    "edge": (225, 150, 70),
}
BODIES = {
    "vehicle": (70, 130, 230),
    "pedestrian": (235, 70, 90),
    "cyclist": (250, 200, 50),
    "other": (175, 100, 205),
}
"""RGB by the kind of road user; of kinds that are not in it, ``other``."""
EGO, PLAN, TRAIL = (250, 250, 250), (70, 235, 120), (120, 200, 250)
