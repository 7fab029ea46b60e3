"""What `ray job submit` runs: each module is one verb.

train      one experiment over Ray workers
tune       many of them over a search space
evaluate   a checkpoint or a registered model on a data set
promote    a checkpoint becomes a version of the registered model
"""
