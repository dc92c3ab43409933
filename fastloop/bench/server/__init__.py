"""`fastloop bench server`: many clients at a fixed rate, and what bad ones do to them."""
