"""From files on disk to training batches and evaluation objects.

annotations, images   what a data set says of an image, and its pixels
coco, grabcut         one reader per format
join, sources         several annotation files of the same images become one
augment, sampler      how a training sample is cut out, and which samples a worker draws
training_set          the three together, as a torch data set
synthetic             scenes made of textured shapes, written in COCO-LVIS form
"""
