"""What came of many slides: the table of a folder of heatmaps, and a page of it to look at."""
