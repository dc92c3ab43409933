"""Scoring plans on recorded data: the work in pieces, whoever does it, and what is made of it."""
