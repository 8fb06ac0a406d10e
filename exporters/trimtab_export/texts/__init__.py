"""Real texts of unlike kinds, from what the machine and the installed packages carry anyway."""
