"""The real-time loop: clock, deadline, fallback and transport."""
