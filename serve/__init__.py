"""Clicks over HTTP, on Ray Serve.

app         the application: its deployments, and how many replicas each has
http/       what speaks HTTP: routes, the gate before them, keys
protocols/  what annotation tools speak
state/      images, what need not be computed again, and from clicks to a mask
inference/  the model: which version answers, its encoder, batched forwards
wire/       what requests and replies hold
web/        the page
"""
