"""From messages to what policies read, and from motions to what vehicles and arms follow."""
