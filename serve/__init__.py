"""Clicks over HTTP, on Ray Serve.

schemas     what requests and replies hold
settings    of a server
registry    which model is served
store       images under their sha256
cache       what need not be computed again
segmenter   the deployment that holds the model: batched forwards
session     from image and clicks to a prediction, by way of the segmenter
encoding    masks as RLE, PNG and polygons
api         the deployment that speaks HTTP
app         both, as an application
web/        the page
"""
