"""How messages get in and out: what the loop needs of a transport, and the transports there are."""
