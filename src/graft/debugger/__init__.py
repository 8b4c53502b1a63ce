"""The debugger: a probe records the training, rules judge the records."""
