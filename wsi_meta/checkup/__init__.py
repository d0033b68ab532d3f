"""What ``wsi-meta doctor`` looks at: this machine, its libraries, the output folder, a cluster, and a scan of a drawn slide.

Nothing here is imported before it is needed: what can be told is told, also where torch or another library is broken.
"""
