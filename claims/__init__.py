"""What papers claim, measured again in the small: one module per chapter, one table per claim, run from the root."""
