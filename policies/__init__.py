"""What decides: a history of observations becomes a plan of actions."""
