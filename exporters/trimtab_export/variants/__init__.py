"""Which variants a bundle has: by a recipe or a search, each made, measured, and kept with its figures."""
