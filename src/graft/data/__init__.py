"""Photos in splits: scanning, checking, loading, splitting, and a demo set drawn from a seed."""
