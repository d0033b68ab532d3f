"""Heatmaps for other programs: pictures, outlines and tables that QuPath, ASAP, Fiji and statistics read where they lie."""
