"""Worlds and what happens in them: environments, experts, the closed-loop runner and its report."""
