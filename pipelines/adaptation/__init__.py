"""A user's annotated photos make the champion better at them, if they do."""
