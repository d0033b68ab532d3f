"""Many slides: which ones, by whom, and how they are scanned in one stream."""
