"""`fastloop bench vehicle`: what the on-vehicle loop itself costs, how late it is, how soon its
watchdog takes over, and what it publishes while it is given faults."""
