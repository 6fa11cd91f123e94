"""Files: pictures, volumes, slides, tables."""
