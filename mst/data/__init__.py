"""From files on disk to training batches and evaluation objects.

files                 bytes from folders, s3:// and https://, and copies of them
images, mask_images   pixels and labels
annotations, runs     what a data set says of an image and its objects, and their masks
coco, panoptic, label_maps, pairs, hannotation
                      one reader per format of annotation
evaluation_sets       the sets that the field evaluates on
join, index           several annotations of the same images become one; the file that holds it
sources               all of these by name
augment, sampler      how a training sample is cut out, and which samples a worker draws
training_set          those together, as a torch data set
synthetic             scenes made of textured shapes, written in COCO-LVIS form
"""
