"""Models of other tools become ours, and ours theirs."""
