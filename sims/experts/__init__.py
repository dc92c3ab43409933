"""Scripted experts: they read a simulator's privileged state and return its actions."""
