"""Programs about data sets, which no training reads: preparation, inspection, COCO files."""
