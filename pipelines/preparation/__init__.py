"""What `pipelines/prepare.py` does with annotations: check them, and spread the work over the cluster."""
