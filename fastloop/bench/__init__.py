"""`fastloop bench`: what is measured of an accelerator, one measurement a module."""
