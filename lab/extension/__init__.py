"""A trained model taken to longer contexts, in phases, and what that changes."""
