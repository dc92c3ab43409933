"""`fastloop bench vehicle`: what the on-vehicle loop itself costs, how late it is, and how soon its
watchdog takes over."""
