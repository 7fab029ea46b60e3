"""From files on disk to training batches and evaluation objects.

files, cache, folders bytes from folders, s3:// and https://, copies of them, and what lies in a folder
images, mask_images   files of pixels, masks and labels
arrays, base64_text   the same as callers of the library and of the server have them
annotations, runs     what a data set says of an image and its objects, and their masks
problems              what is left out of a data set: counted, said, and too much of it refused
segmentations, check  what masks may hold before they are decoded; faults that only the images tell
coco, panoptic, label_maps, pairs, hannotation
                      one reader per format of annotation
evaluation_sets       the sets that the field evaluates on
join, index           several annotations of the same images become one; the file that holds it
sources               all of these by name
augment, sampler      how a training sample is cut out, and which samples a worker draws
training_set          those together, as a torch data set
synthetic             scenes made of textured shapes, written in COCO-LVIS form
"""
