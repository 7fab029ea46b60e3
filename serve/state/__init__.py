"""What is known of images and objects between two requests: a cache, never the truth."""
