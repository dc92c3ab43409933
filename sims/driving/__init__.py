"""Driving in closed loop: scenes, observations, tracking of plans, and scores; no engine."""
