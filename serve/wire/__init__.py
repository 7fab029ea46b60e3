"""Requests and answers of this server's own interface, and masks in the forms that it sends."""
