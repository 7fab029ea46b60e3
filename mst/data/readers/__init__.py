"""One file for each format of annotations; `mst.data.sources` has them by name."""
