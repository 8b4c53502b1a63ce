"""Answers photos with classes: a handler for serving stacks, a small server of its own, and its page."""
