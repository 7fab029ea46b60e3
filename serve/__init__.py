"""Clicks over HTTP, on Ray Serve.

schemas     what requests and replies hold
settings    of a server
registry    which model is served
images      image files to pixels
store       images under their sha256
cache       what need not be computed again
batching    calls that share a forward
model       a model that is loaded, tried and warmed up
segmenter   the deployment that holds the model: batched forwards
versions    which version answers
session     from image and clicks to a prediction, by way of the segmenter
encoding    masks as RLE, PNG and polygons
keys        who may ask
load        how much waits for the model
limits      the gate before all routes
metrics     what is counted and timed
core        the one function behind every protocol: image and clicks in, mask out
errors      what can be answered beside a mask
protocols/  what annotation tools speak
api         the deployment that speaks HTTP
app         both, as an application
web/        the page
"""
