"""What the loop says about itself: latencies by stage, counters, and where they can be read."""
