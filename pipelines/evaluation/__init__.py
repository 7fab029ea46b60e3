"""Evaluation on a cluster: the data sets, the methods, and the actors that share the objects."""
