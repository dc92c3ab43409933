"""Policies over websockets, in openpi's protocol: a server, and a client that is a policy."""
