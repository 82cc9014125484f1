"""Reports of runs and of comparisons, from what they left in their work directories."""
