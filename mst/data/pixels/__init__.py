"""Images and masks: files to pixels, pixels to files, and the forms that callers give them in."""
