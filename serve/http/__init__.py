"""The HTTP border: routes, limits and keys."""
