"""Driving policies: from the recent past of a vehicle to waypoints."""
