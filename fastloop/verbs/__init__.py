"""One module a verb of the `fastloop` command."""
