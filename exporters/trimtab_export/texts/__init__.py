"""Real texts of different kinds, from what the machine and the installed packages already contain."""
