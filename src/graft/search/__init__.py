"""Search: many trials of a configuration on one pass over the features, judged on valid."""
