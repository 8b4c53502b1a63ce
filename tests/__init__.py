"""A package by file: smdebug-rulesconfig (a need of sagemaker) installs a `tests` that would win otherwise."""
