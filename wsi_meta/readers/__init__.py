"""Who decodes a slide: one module for each kind of file, which of them a file gets, and what they share.

Every reader has the attributes and methods of :class:`wsi_meta.readers.reader.Reader`.
"""
