"""The feature cache: a frozen backbone is a pure function, so each photo passes through it once."""
