"""Memory that the C library's heap would keep for itself."""

import ctypes

MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
}
"""Environment of processes that hold images, which come and go in all threads: by default glibc keeps a heap
for each thread, full of holes as large as images."""

MALLOC_OF_MODEL = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment of the process that holds the model, whose tensors have few sizes and leave no holes: what a
forward gives back the next one takes, in huge pages. From the system it would take twice as long, in faults
of pages; in small pages a tenth longer."""


def give_back() -> None:
    """Return to the system all whole pages of the heap that nothing lies on, between others too (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
