"""`fastloop bench decode`: what is measured of a way to write answers, one measurement a module."""
