"""Many slides: which ones, in one stream, with a table and a page of what came of them."""
